/* Log lines, to the caller's function or to stderr. */
#ifndef GTOPK_UTIL_LOG_H
#define GTOPK_UTIL_LOG_H

#include "gtopk.h"

int log_enabled(int level);

void log_write(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define LOG(level, ...)                      \
    do {                                     \
        if (log_enabled(level))              \
            log_write((level), __VA_ARGS__); \
    } while (0)

#endif
