/* Asks the CPU what it runs, and the environment what is wanted. Knows the tables of kernels by name only. */
#include "device/cpu/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
/* Not every compiler knows the name of this feature. */
static int has_f16c(void)
{
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

/* Best first. */
static size_t isa_list(const kernels_t *list[3])
{
    size_t count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        list[count++] = &kernels_avx512;
    if (avx2)
        list[count++] = &kernels_avx2;
#elif defined(__aarch64__)
    list[count++] = &kernels_neon;
#endif
    list[count++] = &kernels_scalar;
    return count;
}

gtopk_status_t isa_choose(const kernels_t **kernels)
{
    const kernels_t *list[3];
    size_t count = isa_list(list);
    const char *wanted = getenv("GTOPK_ISA");
    if (!wanted || !*wanted) {
        *kernels = list[0];
        return GTOPK_OK;
    }
    for (size_t i = 0; i < count; i++)
        if (strcmp(wanted, list[i]->name) == 0) {
            *kernels = list[i];
            return GTOPK_OK;
        }
    return status_set(GTOPK_ERR_UNSUPPORTED,
                      "GTOPK_ISA: this machine does not run \"%s\"; it runs: %s. Unset GTOPK_ISA for the best of them",
                      wanted, device_cpu_isa_supported());
}

const char *device_cpu_isa(void)
{
    const kernels_t *kernels = NULL;
    return isa_choose(&kernels) == GTOPK_OK ? kernels->name : "none";
}

const char *device_cpu_isa_supported(void)
{
    const kernels_t *list[3];
    size_t count = isa_list(list);
#if defined(__aarch64__)
    return count == 2 ? "neon scalar" : "scalar";
#else
    return count == 3 ? "avx512 avx2 scalar" : count == 2 ? "avx2 scalar" : "scalar";
#endif
}
