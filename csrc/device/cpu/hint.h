/* Predicts from earlier steps a magnitude that at least k entries of the next step will have. A prediction that is
 * wrong costs time only: too low, and the pool is cut once or twice; too high, and the residual is read once more. */
#ifndef GTOPK_DEVICE_CPU_HINT_H
#define GTOPK_DEVICE_CPU_HINT_H

#include <stdint.h>

typedef struct hint {
    float last;           /* the k-th magnitude of the last step, 0: not known */
    float recent, before; /* how far it fell at most from one step to the next: in this window of steps, and the last */
    uint32_t age;         /* steps of this window */
    int unwanted;         /* the last step was dense: the next one is likely to be, and will not select */
} hint_t;

/* Forgets everything: the next step starts from the smallest magnitude. */
void hint_reset(hint_t *hint);

/* The same after a dense step, so that dense training pays for no candidates: the next step starts from the largest
 * magnitude, and reads the residual again should it select after all. */
void hint_reset_dense(hint_t *hint);

/* Bits of the predicted magnitude, 1 (the smallest) when nothing is known. */
uint32_t hint_magnitude(const hint_t *hint);

/* A step selected k entries, the smallest with these bits; 0: there were fewer than k. */
void hint_learn(hint_t *hint, uint32_t smallest);

#endif
