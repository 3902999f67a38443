/* Exchanges of tests over NCCL's stand-in. For tests only. */
#ifndef TESTS_SUPPORT_NCCL_H
#define TESTS_SUPPORT_NCCL_H

#include "support/nccl_standin.h"

/* 1: tests are to run on it (GTOPK_TEST_TRANSPORT=nccl, with GTOPK_NCCL_LIBRARY its file). */
int nccl_wanted(void);

/* The stand-in, ready to work with the device that GTOPK_DEVICE names: guarded, or cuda on its own stand-in. */
const nccl_standin_control_t *nccl_standin_open(void);

#endif
