/* The k largest entries of a set that is sorted by index. A sample says between which magnitudes the k-th must lie, the
 * few entries there are copied, and histograms over ever narrower ranges find it; ties go to the entries that stand
 * first. A sample that misleads costs time only. No scratch memory beyond the stack. */
#include "device/cpu/sets.h"
#include "wire/convert.h"

#define DIGIT_BITS 11u

/* Sampling begins to pay at some ten thousand entries. The rank of a magnitude in the sample has a standard deviation
 * of at most sqrt(SAMPLE) / 2 = 16 around its rank in the set; SAMPLE_MARGIN is three of them. */
#define SAMPLE 1024u
#define SAMPLE_MARGIN 48u
#define SAMPLE_FROM 8192u

/* A range with this many entries or fewer is copied; the margins hold a tenth of the set. */
#define FEW 8192u

typedef struct range {
    uint32_t low, high; /* bits of |v|, both included */
} range_t;

static uint32_t magnitude_of(float value)
{
    return convert_bits(value) & 0x7fffffffu;
}

static range_t range_of(const float *value, size_t count)
{
    int32_t low = INT32_MAX, high = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)magnitude_of(value[i]);
        low = bits < low ? bits : low;
        high = bits > high ? bits : high;
    }
    return (range_t){(uint32_t)low, (uint32_t)high};
}

/* The part of the range that holds the k-th largest of the values in it; *k becomes its rank in there, *size the number
 * of values in there. */
static range_t narrow(range_t range, const float *value, size_t count, size_t *k, size_t *size)
{
    uint32_t histogram[1u << DIGIT_BITS] = {0};
    uint32_t width = range.high - range.low;
    unsigned bits = 32u - (unsigned)__builtin_clz(width), shift = bits > DIGIT_BITS ? bits - DIGIT_BITS : 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t offset = magnitude_of(value[i]) - range.low;
        if (offset <= width)
            histogram[offset >> shift]++;
    }
    uint32_t digit = width >> shift;
    while (histogram[digit] < *k)
        *k -= histogram[digit--];
    *size = histogram[digit];
    uint32_t low = range.low + (digit << shift), high = low + ((1u << shift) - 1);
    return (range_t){low, high < range.high ? high : range.high};
}

/* Bits of the k-th largest magnitude; *k becomes the number of entries of exactly this magnitude that belong to the k
 * largest. */
static uint32_t magnitude_of_rank(const float *value, size_t count, size_t *k)
{
    size_t size = count;
    range_t range = range_of(value, count);
    while (range.low < range.high)
        range = narrow(range, value, count, k, &size);
    return range.low;
}

/* Where a sample says that the k-th largest magnitude is. */
static range_t guess_range(const float *value, size_t count, size_t k)
{
    float sample[SAMPLE];
    size_t stride = count / SAMPLE, rank = k * SAMPLE / count;
    for (size_t i = 0; i < SAMPLE; i++)
        sample[i] = value[i * stride];
    size_t from = rank > SAMPLE_MARGIN ? rank - SAMPLE_MARGIN : 0, to = rank + SAMPLE_MARGIN;
    return (range_t){to <= SAMPLE ? magnitude_of_rank(sample, SAMPLE, &to) : 0,
                     from >= 1 ? magnitude_of_rank(sample, SAMPLE, &from) : CONVERT_INF};
}

static uint32_t magnitude_by_sample(const kernels_t *kernels, const float *value, size_t count, size_t *k)
{
    float few[FEW];
    if (count < SAMPLE_FROM)
        return magnitude_of_rank(value, count, k);
    range_t range = guess_range(value, count, *k);
    size_t above, size = kernels->within(value, count, range.low, range.high, few, FEW, &above);
    if (size + KERNEL_SLACK > FEW || *k <= above || *k > above + size)
        return magnitude_of_rank(value, count, k);
    *k -= above;
    return magnitude_of_rank(few, size, k);
}

void rank_keep_largest(const kernels_t *kernels, const uint32_t *index, const float *value, size_t count, size_t k,
                       uint32_t *out_index, float *out_value)
{
    size_t ties = k;
    uint32_t least = magnitude_by_sample(kernels, value, count, &ties);
    kernels->keep(index, value, count, least, ties, (kernel_entries_t){out_index, out_value, k});
}
