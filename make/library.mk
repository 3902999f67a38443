# The C library, and the module that speaks MPI.
#
# Reads: BUILD, CC, CFLAGS, SANITIZE (a list for -fsanitize=, see tests.mk).

CPPFLAGS += -Iinclude -Icsrc -D_GNU_SOURCE
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wvla
# -ffp-contract=off: promise 1, the same bits on every machine; an fma is written as one.
CFLAGS   ?= -O3 -g
CFLAGS   += -std=c11 $(WARNINGS) -ffp-contract=off -fno-math-errno -fPIC -fvisibility=hidden -pthread
LDLIBS   := -lm -ldl -pthread
ifdef SANITIZE
CFLAGS   += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

LIB_SOURCES := $(sort $(filter-out csrc/transport/mpi_module.c,$(wildcard csrc/*/*.c csrc/device/*/*.c)))
LIB_OBJECTS := $(LIB_SOURCES:%.c=$(BUILD)/%.o)

# Files named for an instruction set are compiled for it; they are entered only after the CPU was asked.
ARCH := $(shell $(CC) -dumpmachine | cut -d- -f1)
ifeq ($(ARCH),x86_64)
$(BUILD)/%_avx2.o: CFLAGS += -mavx2 -mfma -mf16c -mbmi -mbmi2
$(BUILD)/%_avx512.o: CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mbmi -mbmi2 -mprefer-vector-width=512
endif

#: make lib              build/libgtopk.so and .a; needs a C compiler only
lib: $(BUILD)/libgtopk.so $(BUILD)/libgtopk.a

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

# Tests link the archive: it shows the internal functions.
$(BUILD)/libgtopk.a: $(LIB_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/libgtopk.so: $(LIB_OBJECTS) csrc/gtopk.map
	$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libgtopk.so.0 -Wl,--version-script=csrc/gtopk.map -Wl,-z,defs -o $@ $(LIB_OBJECTS) $(LDLIBS)

-include $(LIB_OBJECTS:.o=.d)

.PHONY: lib
