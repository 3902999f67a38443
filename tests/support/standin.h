/* Opens the stand-in for the CUDA driver, of which the build says where it is. For tests only; include <cmocka.h> before. */
#ifndef TESTS_SUPPORT_STANDIN_H
#define TESTS_SUPPORT_STANDIN_H

#include <stdlib.h>

#include "support/cuda_standin.h"
#include "util/dynlib.h"

/* It is what gtopk takes for the driver from here on. Stays open. */
static inline const standin_control_t *standin_open(void)
{
    char why[256];
    void *library = dynlib_open(STANDIN_FILE, 0, why, sizeof why);
    if (!library)
        fail_msg("%s: %s", STANDIN_FILE, why);
    const standin_control_t *standin = dynlib_symbol(library, STANDIN_SYMBOL);
    assert_non_null(standin);
    assert_int_equal(setenv("GTOPK_CUDA_DRIVER", STANDIN_FILE, 1), 0);
    return standin;
}

#endif
