/* Where log lines go. The sink is set once, before threads use the library. */
#include "util/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/text.h"

static gtopk_log_fn log_sink;
static void *log_context;
static int log_level = -1; /* not decided yet: GTOPK_DEBUG */

static int level_of_environment(void)
{
    const char *debug = getenv("GTOPK_DEBUG");
    if (debug && strcmp(debug, "trace") == 0)
        return GTOPK_LOG_TRACE;
    if (debug && strcmp(debug, "info") == 0)
        return GTOPK_LOG_INFO;
    return GTOPK_LOG_WARN;
}

void gtopk_set_log(gtopk_log_fn fn, void *context, int level)
{
    log_sink = fn;
    log_context = context;
    log_level = fn ? level : level_of_environment();
}

int log_enabled(int level)
{
    return level <= (log_level >= 0 ? log_level : level_of_environment());
}

void log_write(int level, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    text_format(text, sizeof text, format, args);
    va_end(args);
    if (log_sink)
        log_sink(log_context, level, text);
    else
        (void)fprintf(stderr, "gtopk: %s\n", text);
}
