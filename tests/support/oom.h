/* Allocations that fail on request. Link with -Wl,--wrap=calloc -Wl,--wrap=free. For tests only. */
#ifndef TESTS_SUPPORT_OOM_H
#define TESTS_SUPPORT_OOM_H

/* The allocation number `after` (from 0) of this thread fails, once; -1: none, and what has fired is remembered. */
void gtopk_oom_arm(long after);

/* 1 when the armed failure has taken place. */
int gtopk_oom_fired(void);

/* Blocks of all threads that are allocated now. */
long gtopk_oom_live(void);

#endif
