/* Fuzzing: what a target gives, and what the mutations and drivers make of it.
 *
 * A target (target_*.c) defines `fuzz_target`. mutate.c knows inputs and their fields only; it holds the two entry points
 * of libFuzzer. driver.c has the main() that is used where there is no libFuzzer. */
#ifndef GTOPK_TESTS_FUZZ_H
#define GTOPK_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/random.h"

#define FUZZ_INPUT_MAX 8192u

typedef struct fuzz_field {
    uint32_t offset, bytes;
} fuzz_field_t;

typedef struct fuzz_target {
    const char *name;
    const fuzz_field_t *fields; /* of the input's head: what one field changed means */
    size_t field_count;

    /* Writes an input that has to be accepted, at most FUZZ_INPUT_MAX bytes; returns its length. */
    size_t (*valid)(random_state_t *random, uint8_t *out);

    /* Makes the parts that follow from others (the checksum; half the time, lengths) fit again, so that the input gets
     * past the checks of these. */
    void (*repair)(random_state_t *random, uint8_t *data, size_t bytes);

    /* Runs one input. 1: accepted, 0: refused. Ends the process where a promise is broken. */
    int (*run)(const uint8_t *data, size_t bytes);
} fuzz_target_t;

extern const fuzz_target_t fuzz_target;

/* Changes an input of `bytes` bytes in room for FUZZ_INPUT_MAX; returns the new length. */
size_t fuzz_mutate(random_state_t *random, uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t bytes, size_t capacity, unsigned seed);

#define FUZZ_CHECK(condition)                                                                     \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            (void)fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

#endif
