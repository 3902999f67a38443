/* The k largest entries of a set that is sorted by index: the bits of the k-th magnitude come from three histograms, of
 * 11, 10 and 10 bits, and ties go to the entries that stand first. No scratch memory. */
#include <string.h>

#include "device/cpu/sets.h"
#include "wire/convert.h"

#define DIGITS 2048u

static uint32_t magnitude_of(float value)
{
    return convert_bits(value) & 0x7fffffffu;
}

/* Digit of the k-th largest among the magnitudes whose bits above the digit are `prefix`; *k becomes its rank among
 * those with that digit too, *size their number. */
static uint32_t digit_of_rank(const float *value, size_t count, unsigned shift, uint32_t mask, uint32_t prefix,
                              size_t *k, size_t *size)
{
    uint32_t histogram[DIGITS] = {0};
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = magnitude_of(value[i]) >> shift;
        if ((bits & ~mask) == prefix)
            histogram[bits & mask]++;
    }
    uint32_t digit = mask;
    while (histogram[digit] < *k)
        *k -= histogram[digit--];
    *size = histogram[digit];
    return prefix | digit;
}

void rank_keep_largest(const uint32_t *index, const float *value, size_t count, size_t k, uint32_t *out_index,
                       float *out_value)
{
    /* After each digit: the wanted magnitudes are those above `least`, and k more of the `size` that share its digits. */
    size_t size;
    uint32_t least = digit_of_rank(value, count, 20, 0x7ff, 0, &k, &size) << 10;
    least = digit_of_rank(value, count, 10, 0x3ff, least, &k, &size) << 10;
    least = digit_of_rank(value, count, 0, 0x3ff, least, &k, &size);

    size_t kept = 0, i = 0;
    for (; i < count && k > 0; i++) {
        uint32_t bits = magnitude_of(value[i]);
        out_index[kept] = index[i];
        out_value[kept] = value[i];
        kept += bits >= least;
        k -= bits == least;
    }
    for (; i < count; i++)
        if (magnitude_of(value[i]) > least) {
            out_index[kept] = index[i];
            out_value[kept++] = value[i];
        }
}
