/* The floating-point environment that the exact arithmetic runs in: round to nearest, denormals kept, no exception
 * trapped. Callers may have set others (PyTorch's set_flush_denormal, -ffast-math start-up code), so every operation of
 * a host device enters it and leaves it, on each thread that computes. Knows nothing of what is computed.
 *
 * Entering and leaving are barriers to the compiler for memory, not for values in registers: let the arithmetic be on
 * values loaded after fpenv_enter and stored before fpenv_leave. */
#ifndef GTOPK_UTIL_FPENV_H
#define GTOPK_UTIL_FPENV_H

#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)

typedef uint32_t fpenv_t;

#define FPENV_EXACT \
    0x1f80u /* MXCSR: all exceptions masked, round to nearest, neither flush-to-zero nor denormals-are-zero */

static inline fpenv_t fpenv_enter(void)
{
    fpenv_t saved, exact = FPENV_EXACT;
    __asm__ volatile("stmxcsr %0\n\tldmxcsr %1" : "=m"(saved) : "m"(exact) : "memory");
    return saved;
}

static inline void fpenv_leave(fpenv_t saved)
{
    __asm__ volatile("ldmxcsr %0" : : "m"(saved) : "memory");
}

#elif defined(__aarch64__)

typedef uint64_t fpenv_t;

static inline fpenv_t fpenv_enter(void)
{
    fpenv_t saved;
    __asm__ volatile("mrs %0, fpcr\n\tmsr fpcr, xzr" : "=&r"(saved) : : "memory");
    return saved;
}

static inline void fpenv_leave(fpenv_t saved)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(saved) : "memory");
}

#else

#include <fenv.h>

typedef fenv_t fpenv_t;

static inline fpenv_t fpenv_enter(void)
{
    fpenv_t saved;
    (void)fegetenv(&saved);
    (void)fesetenv(FE_DFL_ENV);
    return saved;
}

static inline void fpenv_leave(fpenv_t saved)
{
    (void)fesetenv(&saved);
}

#endif

#endif
