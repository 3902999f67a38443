/* How many ranks a test goes up to: `most`, or GTOPK_TEST_SIZES where that is less. */
#ifndef TESTS_SUPPORT_SIZES_H
#define TESTS_SUPPORT_SIZES_H

#include <stdlib.h>

static inline int sizes_up_to(int most)
{
    const char *limit = getenv("GTOPK_TEST_SIZES");
    return limit && atoi(limit) < most ? atoi(limit) : most;
}

#endif
