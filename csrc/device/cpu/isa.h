/* Which instruction set the CPU device runs on. */
#ifndef GTOPK_DEVICE_CPU_ISA_H
#define GTOPK_DEVICE_CPU_ISA_H

#include "device/cpu/kernels.h"
#include "util/status.h"

/* The kernels that GTOPK_ISA names, else the best that this machine runs. UNSUPPORTED with the names that it runs. */
gtopk_status_t isa_choose(const kernels_t **kernels);

/* For gtopk_build_info: the name of what isa_choose finds ("none" when GTOPK_ISA is wrong), and all that this machine
 * runs, best first, separated by spaces. */
const char *device_cpu_isa(void);
const char *device_cpu_isa_supported(void);

#endif
