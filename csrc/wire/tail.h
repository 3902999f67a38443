/* The tail of a message that no checksum protects: eight bytes behind it that say which message the head is of, so that a
 * buffer of which only a part was written is found out. A mark of step, sender and round: buffers are used again. Read by
 * kernels as well. */
#ifndef GTOPK_WIRE_TAIL_H
#define GTOPK_WIRE_TAIL_H

#include <stdint.h>

#define WIRE_TAIL_SIZE 8u

/* Where the tail of a message of `size` bytes is. */
static inline uint64_t tail_place(uint64_t size)
{
    return (size + 7) / 8 * 8;
}

/* Odd multipliers, so that messages that differ in one of the three differ in their mark. */
static inline uint64_t tail_mark(uint64_t step, uint32_t sender, uint32_t round)
{
    return (step + 1) * 0x9e3779b97f4a7c15u ^ ((uint64_t)sender << 32 | (round + 1)) * 0xbf58476d1ce4e5b9u;
}

#endif
