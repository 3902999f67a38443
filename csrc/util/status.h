/* Error reporting: a status code is returned, its text is kept for this thread. */
#ifndef GTOPK_UTIL_STATUS_H
#define GTOPK_UTIL_STATUS_H

#include "gtopk.h"

/* Room for an error text, the final zero included. */
#define STATUS_TEXT_SIZE 1024

/* Stores the text for gtopk_last_error() and returns `status`, so that a function can `return status_set(...)`. The
 * text says what happened, to which object, and what to do. */
gtopk_status_t status_set(gtopk_status_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the present text of this thread and returns `status`. */
gtopk_status_t status_prefix(gtopk_status_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Copies this thread's present text, for a call that goes on and may set another one. */
void status_keep(char text[STATUS_TEXT_SIZE]);

#define STATUS_NOMEM(what, bytes)                                                                                   \
    status_set(GTOPK_ERR_NOMEM, "out of memory: %s needs %zu bytes; free memory, or use fewer or smaller reducers", \
               what, (size_t)(bytes))

#endif
