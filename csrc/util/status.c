/* Status names and the thread-local error text. */
#include "util/status.h"

#include <stdarg.h>
#include <string.h>

#include "util/text.h"

static _Thread_local char error_text[STATUS_TEXT_SIZE];

gtopk_status_t status_set(gtopk_status_t status, const char *format, ...)
{
    char text[STATUS_TEXT_SIZE]; /* the arguments may point into error_text */
    va_list args;
    va_start(args, format);
    text_format(text, sizeof text, format, args);
    va_end(args);
    memcpy(error_text, text, sizeof text);
    return status;
}

gtopk_status_t status_prefix(gtopk_status_t status, const char *format, ...)
{
    char prefix[STATUS_TEXT_SIZE];
    va_list args;
    va_start(args, format);
    text_format(prefix, sizeof prefix, format, args);
    va_end(args);
    return status_set(status, "%s: %s", prefix, error_text);
}

void status_keep(char text[STATUS_TEXT_SIZE])
{
    memcpy(text, error_text, sizeof error_text);
}

const char *gtopk_last_error(void)
{
    return error_text;
}

const char *gtopk_status_name(int status)
{
    switch (status) {
#define STATUS_NAME(name, code, text) \
    case code: return #name;
        GTOPK_STATUS_LIST(STATUS_NAME)
#undef STATUS_NAME
    default: return "GTOPK_ERR_UNKNOWN";
    }
}

const char *gtopk_status_text(int status)
{
    switch (status) {
#define STATUS_TEXT(name, code, text) \
    case code: return text;
        GTOPK_STATUS_LIST(STATUS_TEXT)
#undef STATUS_TEXT
    default: return "no status of this library";
    }
}
