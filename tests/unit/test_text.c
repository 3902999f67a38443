/* Texts that are too long for their arrays: what is left is whole characters, and as many of them as fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "util/log.h"
#include "util/status.h"
#include "util/text.h"

/* Characters of 1, 2, 3 and 4 bytes, the first and the last of each length among them. */
static const char *const CHARACTERS[] = {"a",
                                         "\xc2\x80",
                                         "\xc3\xa9",
                                         "\xdf\xbf",
                                         "z",
                                         "\xe0\xa0\x80",
                                         "\xe2\x82\xac",
                                         "\xef\xbf\xbf",
                                         "\xf0\x90\x80\x80",
                                         "\xf4\x8f\xbf\xbf",
                                         "\x7f"};
#define COUNT (sizeof CHARACTERS / sizeof *CHARACTERS)

static void join(char *text, size_t count)
{
    text[0] = 0;
    for (size_t i = 0; i < count; i++)
        strcat(text, CHARACTERS[i]);
}

/* The longest beginning of whole characters that has at most `most` bytes. */
static void join_at_most(char *text, size_t most)
{
    size_t count = COUNT;
    do
        join(text, count);
    while (strlen(text) > most && count-- > 0);
}

static void format(char *text, size_t size, const char *pattern, ...) __attribute__((format(printf, 3, 4)));
static void format(char *text, size_t size, const char *pattern, ...)
{
    va_list args;
    va_start(args, pattern);
    text_format(text, size, pattern, args);
    va_end(args);
}

static void test_every_length(void **state)
{
    char whole[64], expected[64], text[64];
    (void)state;
    join(whole, COUNT);
    for (size_t size = 1; size <= sizeof text; size++) {
        memset(text, 'x', sizeof text);
        format(text, size, "%s", whole);
        join_at_most(expected, size - 1);
        assert_string_equal(text, expected);
    }
}

static void test_cut_by_somebody_else(void **state)
{
    char whole[64], expected[64], text[64];
    (void)state;
    join(whole, COUNT);
    for (size_t length = 0; length <= strlen(whole); length++) {
        memcpy(text, whole, length);
        text[length] = 0;
        text_drop_cut_character(text);
        join_at_most(expected, length);
        assert_string_equal(text, expected);
    }
}

/* Another encoding: nothing is known of its characters, so nothing is taken off but what begins one in UTF-8. */
static void test_what_is_not_utf8_stays(void **state)
{
    static const char *const TEXTS[] = {"a\x80\x80\x80\x80", "\xbf", "a\xff", "\xc3\xa9\xa9", "\xc1"};
    (void)state;
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++) {
        char text[16];
        (void)snprintf(text, sizeof text, "%s", TEXTS[i]);
        text_drop_cut_character(text);
        assert_string_equal(text, TEXTS[i]);
    }
}

/* A text that fits is as it was given, in whatever encoding. */
static void test_what_fits_stays(void **state)
{
    char text[8];
    (void)state;
    format(text, sizeof text, "%s", "caf\xe9");
    assert_string_equal(text, "caf\xe9");
}

/* ---- who uses it ---- */

static char logged[STATUS_TEXT_SIZE + 1];

static void keep_line(void *context, int level, const char *text)
{
    (void)context, (void)level;
    (void)snprintf(logged, sizeof logged, "%s", text);
}

/* `lead` letters and then characters of two bytes, one of which lies over the end of the array. */
static void long_text(char *text, size_t lead)
{
    memset(text, 'a', lead);
    for (size_t i = lead; i + 2 < 2 * STATUS_TEXT_SIZE; i += 2)
        memcpy(text + i, "\xc3\xa9", 3);
}

static void test_errors_and_log_lines(void **state)
{
    char text[2 * STATUS_TEXT_SIZE];
    (void)state;
    for (size_t lead = 0; lead < 2; lead++) {
        const size_t kept = lead == 1 ? STATUS_TEXT_SIZE - 1 : STATUS_TEXT_SIZE - 2;
        long_text(text, lead);
        (void)status_set(GTOPK_ERR_INVALID, "%s", text);
        assert_int_equal(strlen(gtopk_last_error()), kept);
        assert_memory_equal(gtopk_last_error(), text, kept);
        (void)status_set(GTOPK_ERR_INVALID, "x");
        (void)status_prefix(GTOPK_ERR_INVALID, "%s", text); /* has no room for ": x" in either case */
        assert_true(strlen(gtopk_last_error()) >= kept);
        assert_memory_equal(gtopk_last_error(), text, kept);
        gtopk_set_log(keep_line, NULL, GTOPK_LOG_WARN);
        LOG(GTOPK_LOG_WARN, "%s", text);
        gtopk_set_log(NULL, NULL, 0);
        assert_int_equal(strlen(logged), kept);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_length),           cmocka_unit_test(test_cut_by_somebody_else),
        cmocka_unit_test(test_what_is_not_utf8_stays), cmocka_unit_test(test_what_fits_stays),
        cmocka_unit_test(test_errors_and_log_lines),
    };
    return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
