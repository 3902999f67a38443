/* The compiled kernels, embedded: a file that the build makes (scripts/cuda_images.py). They are packed there, by us: the
 * driver gets them plain, because old ones cannot read what newer tools compress. */
#ifndef GTOPK_DEVICE_CUDA_IMAGES_H
#define GTOPK_DEVICE_CUDA_IMAGES_H

#include <stddef.h>
#include <stdint.h>

typedef struct cuda_image {
    int architecture; /* 75: sm_75, or, of a PTX, compute_75 */
    int is_ptx;
    size_t bytes; /* unpacked */
    uint32_t crc; /* of these, by wire_crc */
    size_t packed_bytes;
    const void *packed;
} cuda_image_t;

/* Cubins in ascending order of their architecture, then one PTX. None in a build without CUDA. */
extern const cuda_image_t cuda_images[];
extern const size_t cuda_image_count;

/* Unpacks LZMA without a header, which ends with its mark, to exactly `bytes` bytes. Returns 0 when it is not that; nothing
 * is read or written beyond either side. */
int image_unpack(const void *packed, size_t packed_bytes, void *out, size_t bytes);

#endif
