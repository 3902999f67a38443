/* In place of the embedded kernels, which a build need not have: the stand-in for the driver has its own. An ELF's head of 64
 * bytes that says sm_90, as scripts/cuda_images.py packs it. */
#ifndef TESTS_SUPPORT_ELF_FOR_90_H
#define TESTS_SUPPORT_ELF_FOR_90_H

#include "device/cuda/images.h"

static const uint8_t elf_for_90[] = {0x00, 0x3f, 0x91, 0x45, 0x84, 0x60, 0x06, 0xe1, 0x6c, 0xd3,
                                     0xe6, 0xd2, 0x8b, 0xc1, 0xff, 0xff, 0xf8, 0x7f, 0xe0, 0x00};
const cuda_image_t cuda_images[] = {{90, 0, 64, 0x55e93e47, sizeof elf_for_90, elf_for_90}};
const size_t cuda_image_count = 1;

#endif
