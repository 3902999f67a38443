/* Radix selection and radix sort of candidate keys. */
#include "device/cpu/keys.h"

#include <string.h>

#define DIGIT_BITS 11u
#define DIGITS (1u << DIGIT_BITS)

/* The lowest bit of the digit that begins at the highest bit in which the keys differ. */
static unsigned digit_shift(const uint64_t *keys, size_t count)
{
    uint64_t ones = keys[0], zeros = keys[0];
    for (size_t i = 1; i < count; i++) {
        ones |= keys[i];
        zeros &= keys[i];
    }
    uint64_t differ = ones ^ zeros;
    unsigned bits = differ ? 64u - (unsigned)__builtin_clzll(differ) : 0;
    return bits > DIGIT_BITS ? bits - DIGIT_BITS : 0;
}

/* Digit of the k-th largest key; *k becomes its rank among the keys with that digit, *size is their number. */
static unsigned digit_of_rank(const uint64_t *keys, size_t count, unsigned shift, size_t *k, size_t *size)
{
    uint32_t histogram[DIGITS] = {0};
    for (size_t i = 0; i < count; i++)
        histogram[keys[i] >> shift & (DIGITS - 1)]++;
    unsigned digit = DIGITS - 1;
    while (histogram[digit] < *k)
        *k -= histogram[digit--];
    *size = histogram[digit];
    return digit;
}

static uint64_t keys_of_rank(const uint64_t *keys, size_t count, size_t k, uint64_t *scratch)
{
    const uint64_t *from = keys;
    while (count > 1) {
        size_t size, found = 0;
        unsigned shift = digit_shift(from, count);
        unsigned digit = digit_of_rank(from, count, shift, &k, &size);
        for (size_t i = 0; i < count; i++) {
            uint64_t key = from[i];
            scratch[found] = key;
            found += (key >> shift & (DIGITS - 1)) == digit;
        }
        from = scratch;
        count = size;
    }
    return from[0];
}

uint64_t keys_keep_largest(uint64_t *keys, size_t count, size_t k, uint64_t *scratch)
{
    uint64_t smallest = keys_of_rank(keys, count, k, scratch);
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t key = keys[i];
        keys[kept] = key;
        kept += key >= smallest;
    }
    return smallest;
}

static int keys_are_sorted(const uint64_t *keys, size_t count)
{
    uint32_t wrong = 0;
    for (size_t i = 1; i < count; i++)
        wrong |= (uint32_t)(key_index(keys[i - 1]) >= key_index(keys[i]));
    return !wrong;
}

static void sort_by_digit(const uint64_t *from, uint64_t *to, size_t count, unsigned shift)
{
    uint32_t at[DIGITS] = {0};
    for (size_t i = 0; i < count; i++)
        at[key_index(from[i]) >> shift & (DIGITS - 1)]++;
    uint32_t sum = 0;
    for (unsigned digit = 0; digit < DIGITS; digit++) {
        uint32_t size = at[digit];
        at[digit] = sum;
        sum += size;
    }
    for (size_t i = 0; i < count; i++)
        to[at[key_index(from[i]) >> shift & (DIGITS - 1)]++] = from[i];
}

void keys_sort_by_index(uint64_t *keys, size_t count, uint64_t dim, uint64_t *scratch)
{
    if (count < 2 || keys_are_sorted(keys, count))
        return;
    uint64_t *from = keys, *to = scratch;
    for (unsigned shift = 0; shift < 32 && (dim - 1) >> shift != 0; shift += DIGIT_BITS) {
        sort_by_digit(from, to, count, shift);
        uint64_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys)
        memcpy(keys, from, count * sizeof *keys);
}
