/* Aligned, zeroed host memory on top of calloc: large blocks are fresh zero pages, not a memset. */
#include "util/memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64u

gtopk_status_t memory_alloc(void *out, size_t count, size_t size, const char *what)
{
    void *block = NULL;
    memcpy(out, &block, sizeof block);
    if (count == 0)
        return GTOPK_OK;
    if (size != 0 && count > (SIZE_MAX - 2 * ALIGNMENT) / size)
        return STATUS_NOMEM(what, SIZE_MAX);
    char *raw = calloc(1, count * size + ALIGNMENT);
    if (!raw)
        return STATUS_NOMEM(what, count * size);
    /* At least one byte before the block, whose last byte says how far back calloc's own pointer is. */
    size_t shift = ALIGNMENT - (uintptr_t)raw % ALIGNMENT;
    block = raw + shift;
    ((unsigned char *)block)[-1] = (unsigned char)shift;
    memcpy(out, &block, sizeof block);
    return GTOPK_OK;
}

void memory_free(void *block)
{
    if (block)
        free((char *)block - ((unsigned char *)block)[-1]);
}
