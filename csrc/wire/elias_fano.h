/* The index part of a message: strictly increasing indices as Elias-Fano codes (Vigna, Quasi-succinct indices, WSDM
 * 2013). The layout is in wire.h. Each function has two versions that give the same bytes, indices and verdicts: one
 * that says what the format is, and a `_fast` one.
 *
 * index: `count` strictly increasing indices below dim; 0 <= count <= dim < 2^32. The coded side is
 * wire_index_bytes(dim, count) bytes at any address; nothing else is read or written. */
#ifndef GTOPK_WIRE_ELIAS_FANO_H
#define GTOPK_WIRE_ELIAS_FANO_H

#include <stdint.h>

#include "util/status.h"

void wire_indices_encode(const uint32_t *index, uint32_t count, uint64_t dim, uint8_t *out);
void wire_indices_encode_fast(const uint32_t *index, uint32_t count, uint64_t dim, uint8_t *out);

/* Trusts nothing but the length of `in`. Any bytes are decoded to `count` strictly increasing indices below dim, or
 * refused with CORRUPT and a text; `out` may then hold anything. There is one encoding of a set: bytes that are not
 * what encoding gives are refused. */
gtopk_status_t wire_indices_decode(const uint8_t *in, uint32_t count, uint64_t dim, uint32_t *out);
gtopk_status_t wire_indices_decode_fast(const uint8_t *in, uint32_t count, uint64_t dim, uint32_t *out);

#endif
