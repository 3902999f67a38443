/* Allocation of host memory. Everything is aligned to 64 bytes; failures come back as GTOPK_ERR_NOMEM with a text. */
#ifndef GTOPK_UTIL_MEMORY_H
#define GTOPK_UTIL_MEMORY_H

#include <stddef.h>

#include "util/status.h"

/* `count` items of `size` bytes, zeroed, in *out; count 0 gives NULL. `what` names it in the error text. Large blocks
 * come as untouched zero pages, so memory that is never used is never resident. */
gtopk_status_t memory_alloc(void *out, size_t count, size_t size, const char *what);

void memory_free(void *block);

#endif
