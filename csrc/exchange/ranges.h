/* Who owns which entries in gtopk-split, and how many of them are kept. Pure: sizes and a place give numbers.
 *
 * Owner o of 2^levels has the range (device/range.h) of that number. After `level` halvings a place stands for all owners
 * that have its low `level` bits; their entries together are a range, too, in which the next bit halves again. */
#ifndef GTOPK_EXCHANGE_RANGES_H
#define GTOPK_EXCHANGE_RANGES_H

#include "device/device.h"
#include "util/status.h"

/* The entries of the owners whose low `level` bits are those of `owner`. */
device_range_t ranges_at(uint32_t level, uint32_t owner);

/* Half of a range of that level, as a range of its places: those whose owners have this bit after the low `level` ones. */
device_range_t ranges_half(uint32_t level, uint32_t owner);

/* Entries that may be kept of `part` entries of `dim`, when k are kept of all: their share of k, rounded up. */
uint32_t ranges_budget(uint64_t dim, uint64_t k, uint64_t part);

/* Entries that all owners in a range of that level keep together, when k are kept of all. */
uint64_t ranges_kept(uint64_t dim, uint64_t k, uint32_t levels, uint32_t level, uint32_t owner);

#endif
