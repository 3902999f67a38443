/* Checks for the tests in C, with the library's error text. Include <cmocka.h> before. */
#ifndef TESTS_SUPPORT_CHECK_H
#define TESTS_SUPPORT_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gtopk.h"

/* On a rank's thread, where cmocka's jumps must not be used. */
#define REQUIRE(condition)                                                                                 \
    do {                                                                                                   \
        if (!(condition)) {                                                                                \
            (void)fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, gtopk_last_error()); \
            abort();                                                                                       \
        }                                                                                                  \
    } while (0)

#define ASSERT_OK(call)                                    \
    do {                                                   \
        if ((call) != GTOPK_OK)                            \
            fail_msg("%s: %s", #call, gtopk_last_error()); \
    } while (0)

/* The call failed with this status, and the error's text has `part` in it. */
static inline void assert_says(gtopk_status_t status, gtopk_status_t expected, const char *part)
{
    if (status != expected)
        fail_msg("%s in place of %s: %s", gtopk_status_name(status), gtopk_status_name(expected), gtopk_last_error());
    if (!strstr(gtopk_last_error(), part))
        fail_msg("the error does not say '%s': %s", part, gtopk_last_error());
}

#endif
