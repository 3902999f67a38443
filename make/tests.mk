# The tests.
#
# In C: every tests/{unit,property,faults}/test_*.c is a program of its own, linked with the library's archive, with what
# it needs of tests/support/*.c, and with cmocka. tests/fuzz/target_*.c are the fuzzers, always with sanitizers.
# tests/distributed/*.c are run under mpirun by the tests in Python, which follow by pytest.

STANDIN_SOURCES := tests/support/libcuda_standin.c tests/support/cuda_kernels.c
C_TESTS         := $(sort $(wildcard tests/unit/test_*.c tests/property/test_*.c tests/faults/test_*.c))
RACES           := $(BUILD)/tests/unit/test_cuda_races
C_TEST_BINS     := $(filter-out $(if $(findstring -fsanitize,$(CFLAGS)),$(RACES)),$(C_TESTS:%.c=$(BUILD)/%))
SUPPORT_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(filter-out tests/support/lib%,$(wildcard tests/support/*.c)))
CMOCKA          := $(CACHE)/cmocka$(addprefix -,$(CMOCKA_ARCH))
PYTEST          := GTOPK_BUILD="$(BUILD)" $(VENV_PYTHON) -m pytest

# ---- what is tested with ----

$(CMOCKA)/libs: scripts/find_cmocka.sh scripts/debian_package.sh
	@GTOPK_CACHE="$(CACHE)" scripts/find_cmocka.sh $(CMOCKA) $(CMOCKA_ARCH)

$(BUILD)/tests/%: CPPFLAGS += -Itests

$(BUILD)/libsupport.a: $(SUPPORT_OBJECTS)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(filter-out $(RACES),$(C_TEST_BINS)): $(BUILD)/%: %.c $(BUILD)/libsupport.a $(BUILD)/libgtopk.a $(CMOCKA)/libs
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CPPFLAGS) @$(CMOCKA)/cflags $(CFLAGS) -MMD -MP -MF $@.d $< $(BUILD)/libsupport.a $(BUILD)/libgtopk.a \
	    -o $@ $(LDFLAGS) @$(CMOCKA)/libs $(LDLIBS)

# Each access to memory calls tests/support/cuda_races.c, in place of ThreadSanitizer, which is not linked; so it cannot be
# together with a sanitizer. More optimisation would see that some variables have no address, and leave them out.
$(RACES).o: tests/unit/test_cuda_races.c $(CMOCKA)/libs
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -Itests/unit @$(CMOCKA)/cflags $(CFLAGS) -O1 -fno-tree-ccp -fno-tree-sra -fno-tree-forwprop \
	    -fsanitize=thread -MMD -MP -MF $@.d -c $< -o $@

$(RACES): $(RACES).o $(BUILD)/libsupport.a $(BUILD)/libgtopk.a
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CFLAGS) $< $(BUILD)/libsupport.a $(BUILD)/libgtopk.a -o $@ $(LDFLAGS) @$(CMOCKA)/libs $(LDLIBS)

-include $(RACES).o.d

# device_open looks for the guarded device among what is linked: nothing else asks for it.
WITH_GUARDED := -Wl,--undefined=device_guarded_open
$(C_TEST_BINS): LDFLAGS += $(WITH_GUARDED)

# tests/support/oom.c stands between the library and its allocations.
$(BUILD)/tests/faults/test_memory: LDFLAGS += -Wl,--wrap=calloc -Wl,--wrap=free

# What stands in for the CUDA driver: the kernels compiled as C, and the emulator that runs them.
STANDIN_OBJECTS := $(STANDIN_SOURCES:%.c=$(BUILD)/%.o) $(BUILD)/tests/support/cuda_emulator.o

$(BUILD)/tests/support/cuda_kernels.o: CFLAGS += -O2

$(BUILD)/libcuda_standin.so: $(STANDIN_OBJECTS)
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -o $@ $^ $(LDLIBS)

# What stands in for NCCL, and one that lacks a function.
$(BUILD)/libnccl_standin.so: $(BUILD)/tests/support/libnccl_standin.o
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libnccl_standin.so -o $@ $^ $(LDLIBS)

$(BUILD)/libnccl_incomplete.so: tests/support/libnccl_standin.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -Itests $(CFLAGS) $(LDFLAGS) -DSTANDIN_LACKS_ABORT -shared -o $@ $< $(LDLIBS)

NCCL_TESTS := $(BUILD)/tests/faults/test_nccl $(BUILD)/tests/faults/test_nccl_processes
$(NCCL_TESTS): CPPFLAGS += -DNCCL_STANDIN_FILE='"$(BUILD)/libnccl_standin.so"' \
    -DNCCL_INCOMPLETE_FILE='"$(BUILD)/libnccl_incomplete.so"'
$(NCCL_TESTS): | $(BUILD)/libnccl_standin.so $(BUILD)/libnccl_incomplete.so

# And what a PyTorch without CUDA lacks to have tensors on it; PyTorch's headers are C++. Where it does not compile (no C++,
# no PyTorch), tests with such tensors are skipped.
CXX        ?= c++
TORCH_ROOT  = $(shell $(VENV_PYTHON) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null)

$(BUILD)/libtorch_cuda_standin.so: tests/support/torch_cuda.cpp tests/support/cuda_standin.h $(TEST_READY)
	@mkdir -p $(@D)
	@$(if $(V),,echo "  c++   $@")
	$(Q)$(CXX) -std=c++20 -shared -fPIC -Itests -I"$(TORCH_ROOT)/include" $< -o $@ -L"$(TORCH_ROOT)/lib" -ltorch_cpu -lc10 \
	    -Wl,-rpath,"$(TORCH_ROOT)/lib" 2>$@.log || { tail -5 $@.log; echo "  no tests with tensors on emulated GPUs"; }

STANDIN_TESTS := $(BUILD)/tests/property/test_cuda $(BUILD)/tests/unit/test_cuda_driver \
    $(BUILD)/tests/faults/test_nccl_processes
$(STANDIN_TESTS): CPPFLAGS += -Itests/property -DSTANDIN_FILE='"$(BUILD)/libcuda_standin.so"'
$(STANDIN_TESTS): | $(BUILD)/libcuda_standin.so
-include $(STANDIN_OBJECTS:.o=.d)

# The library with the same, for the test of Python.
$(BUILD)/libgtopk_oom.so: $(LIB_OBJECTS) $(BUILD)/tests/support/oom.o csrc/gtopk.map
	@$(if $(V),,echo "  link  $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,--wrap=calloc -Wl,--wrap=free -Wl,--version-script=csrc/gtopk.map \
	    -Wl,-z,defs -o $@ $(LIB_OBJECTS) $(BUILD)/tests/support/oom.o $(LDLIBS)

# Programs for mpirun: what includes mpi.h is compiled by mpicc.
MPI_PROGRAMS := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/distributed/*.c))

$(MPI_PROGRAMS): $(BUILD)/%: %.c $(BUILD)/libsupport.a $(BUILD)/libgtopk.a $(BUILD)/libgtopk_mpi.so
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(if $(shell grep -l mpi.h $<),"$(MPICC)",$(CC)) $(CPPFLAGS) $(CFLAGS) -MMD -MP -MF $@.d $< $(BUILD)/libsupport.a \
	    $(BUILD)/libgtopk.a -o $@ $(LDFLAGS) $(LDLIBS)

-include $(C_TEST_BINS:=.d) $(MPI_PROGRAMS:=.d) $(SUPPORT_OBJECTS:.o=.d)

# ---- running them ----

# What goes through the whole exchange is run again without the fast code, and on devices and transports that behave as a
# GPU's do: the guarded device queues and hides its memory, the ordered transport queues on it (tests/support/). Up to 5
# ranks are enough for that.
EXCHANGE_TESTS := $(filter %/test_exchange %/test_split %/test_state %/test_reducer %/test_reducer_ranks \
    %/test_reducers_together %/test_peers %/test_rollback %/test_residual_bf16 %/test_nodes %/test_nodes_reducer %/test_choice \
    %/test_faults,$(C_TEST_BINS))
QUEUED_TESTS   := $(EXCHANGE_TESTS) $(filter %/test_memory %/test_queue,$(C_TEST_BINS))

#= Test
#: make test             everything but what takes hours; at most 30 minutes on 2 cores
test: c-tests test-bits test-asan test-tsan fuzz py-tests

# What starts processes, or builds.
SLOW_TESTS := distributed torch_distributed torch_fsdp torch_frameworks examples workloads docs install memory

#: make test-quick       the unit tests in C, and those in Python that start no processes; under 90 s
test-quick: lib $(BUILD)/libcuda_standin.so $(BUILD)/libtorch_cuda_standin.so $(TEST_READY) $(filter $(BUILD)/tests/unit/%,$(C_TEST_BINS))
	@scripts/run_c_tests.sh $(filter $(BUILD)/tests/unit/%,$(C_TEST_BINS))
	$(PYTEST) -q tests/python -m "not long" $(SLOW_TESTS:%=--ignore tests/python/test_%.py) $(ARGS)

#: make test-long        what takes longer: all faults many times, 40 minutes of fuzzing, mutants, clang, NEON, the wheel
test-long: test $(VENV)/.installed-long find-slurm
	GTOPK_SLURM="$(CACHE)/slurm" $(PYTEST) -q -m long tests/python tests/distributed $(ARGS)
	$(MAKE) test-faults ARGS=
	$(MAKE) test-clang
	$(MAKE) test-aarch64
	$(MAKE) wheel

# Where it cannot be had, the tests with it are skipped.
find-slurm:
	@GTOPK_CACHE="$(CACHE)" scripts/find_slurm.sh "$(CACHE)/slurm" || echo "  no Slurm: the tests with it are skipped"

#: make test-faults      everything about faults in its long version, into benchmarks/results/faults.json (ARGS=--help)
test-faults: build $(MPI_PROGRAMS) $(BUILD)/libgtopk_oom.so $(C_TEST_BINS) $(TEST_READY)
	GTOPK_LIBRARY="$(BUILD)/libgtopk.so" $(VENV_PYTHON) benchmarks/faults_report.py --build "$(BUILD)" --cache "$(CACHE)" $(ARGS)

# The CUDA device through the whole exchange, on the stand-in; it takes longer, so a few of them, with up to 3 ranks (4 on nodes). The
# device needs kernels to load, though the stand-in has its own.
EMULATED_TESTS := $(filter %/test_exchange %/test_reducers_together %/test_rollback %/test_nodes %/test_nodes_reducer, \
    $(C_TEST_BINS))

emulated-c-tests: $(EMULATED_TESTS) $(BUILD)/libcuda_standin.so
	@if grep -q cubin $(CUDA_IMAGES); then \
	    GTOPK_TEST_SIZES=3 GTOPK_DEVICE=cuda GTOPK_CUDA_DRIVER="$(BUILD)/libcuda_standin.so" scripts/run_c_tests.sh $(EMULATED_TESTS); \
	else echo "skipped: this build has no CUDA kernels"; fi

# Each program with the settings it runs with, in quotes. What takes longest comes first, so that nothing waits for it alone.
with        = $(foreach program,$(2),"$(1) $(program)")
ORDERED    := GTOPK_TEST_SIZES=5 GTOPK_TEST_TRANSPORT=ordered
OVER_NCCL  := GTOPK_TEST_SIZES=4 GTOPK_DEVICE=guarded GTOPK_TEST_TRANSPORT=nccl \
    GTOPK_NCCL_LIBRARY=$(BUILD)/libnccl_standin.so
each_way    = $(call with,GTOPK_DEVICE=reference,$(1)) $(call with,GTOPK_ISA=scalar,$(1)) $(call on_queues,$(1))
on_queues   = $(call with,GTOPK_TEST_SIZES=5 GTOPK_DEVICE=guarded,$(1)) $(call with,$(ORDERED) GTOPK_DEVICE=guarded,$(1)) \
    $(call with,$(ORDERED) GTOPK_DEVICE=cpu,$(1)) $(call with,$(ORDERED) GTOPK_DEVICE=reference,$(1))
QUEUED_ONLY := $(filter-out $(EXCHANGE_TESTS),$(QUEUED_TESTS))
LONGEST     := $(filter %/test_faults,$(C_TEST_BINS))
# With 9 ranks they have 2.5 times the faults of 6: once is enough here, and make test-faults has all of them each way.
FEWER       := GTOPK_TEST_SIZES=6
ALL_C_TESTS  = $(LONGEST) $(call with,$(FEWER) GTOPK_DEVICE=reference,$(LONGEST)) $(call with,$(FEWER) GTOPK_ISA=scalar,$(LONGEST)) \
    $(call on_queues,$(LONGEST)) $(filter-out $(LONGEST),$(C_TEST_BINS)) \
    $(call each_way,$(filter-out $(LONGEST),$(EXCHANGE_TESTS))) \
    $(call with,GTOPK_TEST_SIZES=5 GTOPK_DEVICE=guarded,$(QUEUED_ONLY)) $(call with,$(ORDERED) GTOPK_DEVICE=guarded,$(QUEUED_ONLY)) \
    $(call with,$(OVER_NCCL),$(filter %/test_exchange %/test_reducers_together %/test_nodes %/test_nodes_reducer \
    %/test_choice,$(C_TEST_BINS)))

#: make c-tests          all tests in C (make build/tests/unit/test_wire: one of them)
c-tests: $(C_TEST_BINS)
	@scripts/run_c_tests.sh $(ALL_C_TESTS)
	@$(MAKE) -s emulated-c-tests

# Of the tests in Python, what goes through the arithmetic is run again without the fast code as well.
ONE_PROCESS_TESTS := tests/python/test_reducer.py tests/python/test_blocks.py tests/python/test_memory.py

#: make py-tests         all tests in Python, with mpirun and torchrun (ARGS="-k words": some)
py-tests: build $(MPI_PROGRAMS) $(BUILD)/libgtopk_oom.so $(BUILD)/libcuda_standin.so $(BUILD)/libnccl_standin.so \
    $(BUILD)/libtorch_cuda_standin.so $(BUILD)/gpu/bin/libcuda_count.so $(TEST_READY)
	$(PYTEST) -q -m "not long" tests/python tests/distributed $(ARGS)
	GTOPK_DEVICE=reference $(PYTEST) -q $(ONE_PROCESS_TESTS)
	GTOPK_ISA=scalar $(PYTEST) -q $(ONE_PROCESS_TESTS)

# ---- sanitizers: the same tests, built into folders of their own ----

SANITIZER_FLAGS := -O1 -g
TSAN_TESTS      := $(filter %/test_transport %/test_exchange %/test_reducer_ranks %/test_reducers_together %/test_peers \
    %/test_rollback %/test_collectives %/test_faults %/test_queue %/test_device %/test_threads %/test_interrupt,$(C_TESTS:%.c=%))

#: make test-asan        the tests in C under AddressSanitizer and UndefinedBehaviorSanitizer
test-asan:
	@$(MAKE) -j2 BUILD=$(BUILD)-asan SANITIZE=address,undefined CFLAGS="$(SANITIZER_FLAGS)" sanitized-c-tests

#: make test-tsan        the tests in C that have threads, under ThreadSanitizer, with up to 5 ranks
test-tsan:
	@GTOPK_TEST_SIZES=5 $(MAKE) -j2 BUILD=$(BUILD)-tsan SANITIZE=thread CFLAGS="$(SANITIZER_FLAGS)" sanitized-c-tests C_TESTS="$(TSAN_TESTS:%=%.c)"

# setarch -R: gcc's ThreadSanitizer knows only the memory layout without randomisation.
SAME_LAYOUT = $(shell setarch -R true 2>/dev/null && echo setarch -R)

sanitized-c-tests: export UBSAN_OPTIONS := print_stacktrace=1
sanitized-c-tests: export LSAN_OPTIONS := suppressions=tests/support/leaks.txt:print_suppressions=0
sanitized-c-tests: $(C_TEST_BINS)
	@$(SAME_LAYOUT) scripts/run_c_tests.sh $(call with,GTOPK_TEST_SIZES=5,$(LONGEST)) \
	    $(call with,GTOPK_TEST_SIZES=4 GTOPK_DEVICE=guarded GTOPK_TEST_TRANSPORT=ordered,$(QUEUED_TESTS)) \
	    $(call with,GTOPK_TEST_RUNS=100,$(filter %/test_device,$(C_TEST_BINS))) \
	    $(filter-out $(LONGEST) %/test_device,$(C_TEST_BINS))

#: make test-mutants     breaks the sources in named ways and says which test notices (ARGS=--help)
test-mutants: build $(BUILD)/libcuda_standin.so $(BUILD)/libtorch_cuda_standin.so $(TEST_READY) $(CMOCKA)/libs
	$(VENV_PYTHON) tests/mutants/run.py $(ARGS)

# ---- fuzzing ----

TIME         ?= 30
FUZZ_TARGETS := $(patsubst tests/fuzz/target_%.c,%,$(wildcard tests/fuzz/target_*.c))
FUZZERS      := $(FUZZ_TARGETS:%=$(BUILD)/tests/fuzz/fuzz_%)

$(FUZZERS): $(BUILD)/tests/fuzz/fuzz_%: $(BUILD)/tests/fuzz/target_%.o $(BUILD)/tests/fuzz/mutate.o \
    $(BUILD)/tests/fuzz/driver.o $(BUILD)/libsupport.a $(BUILD)/libgtopk.a
	$(Q)$(CC) $(CFLAGS) $^ -o $@ $(LDFLAGS) $(LDLIBS)

-include $(wildcard $(BUILD)/tests/fuzz/*.d)

#: make fuzz TIME=30     mutated messages, checkpoints and configurations, for TIME seconds in all, under sanitizers
fuzz:
	@$(MAKE) -j2 BUILD=$(BUILD)-asan SANITIZE=address,undefined CFLAGS="$(SANITIZER_FLAGS)" run-fuzzers

run-fuzzers: $(FUZZERS)
	@set -e; for target in $(FUZZ_TARGETS); do \
	    $(BUILD)/tests/fuzz/fuzz_$$target --seconds $$(($(TIME) / $(words $(FUZZ_TARGETS)))) --seed $$(date +%s) \
	        --corpus tests/fuzz/corpus/$$target; done

#: make fuzz-libfuzzer TIME=30   the same under clang's libFuzzer, where that is found
fuzz-libfuzzer:
	@scripts/libfuzzer.sh $(BUILD)-libfuzzer $(TIME) $(FUZZ_TARGETS)

# Run by libfuzzer.sh in a make of its own, with that build's BUILD, CC and SANITIZE.
LIBFUZZERS := $(FUZZ_TARGETS:%=$(BUILD)/tests/fuzz/libfuzzer_%)
libfuzzers: $(LIBFUZZERS)

$(LIBFUZZERS): $(BUILD)/tests/fuzz/libfuzzer_%: $(BUILD)/tests/fuzz/target_%.o $(BUILD)/tests/fuzz/mutate.o \
    $(BUILD)/libsupport.a $(BUILD)/libgtopk.a
	$(Q)$(CC) $(CFLAGS) -fsanitize=fuzzer $^ -o $@ $(LDFLAGS) $(LDLIBS)

.PHONY: test test-quick test-long find-slurm test-faults test-mutants c-tests emulated-c-tests py-tests test-asan test-tsan \
    sanitized-c-tests fuzz run-fuzzers fuzz-libfuzzer libfuzzers
