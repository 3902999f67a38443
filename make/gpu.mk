# The check of a machine with a GPU. `gpu-check-build` puts everything that it runs into one folder, $(GPU), here, where there
# is a compiler and a network; `scripts/gpu_check.py` runs it there, from a tree with that folder. docs/development.md says how.

GPU       := $(BUILD)/gpu
GPU_TESTS := $(addprefix $(GPU)/bin/,bits test_reducer test_reducers_together test_exchange test_reducer_ranks test_state \
    test_nodes test_nodes_reducer test_faults test_memory)
GPU_FILES := $(addprefix $(GPU)/,libgtopk.so libgtopk_mpi.so libcuda_standin.so libtorch_cuda_standin.so libnccl_standin.so \
    bin/libcuda_count.so bin/gpu_bench)
# Programs for mpirun, in the same places as in $(BUILD).
GPU_RANKS := $(addprefix $(GPU)/,benchmarks/allreduce_bench tests/distributed/step_until_error tests/distributed/trace_step)

comma := ,

# Tests of steps take ordinary memory for gradients: tests/gpu/on_device.c stands between them and the library.
ON_DEVICE := $(BUILD)/tests/gpu/on_device.o
GPU_WRAP  := $(addprefix -Wl$(comma)--wrap=,gtopk_reducer_accumulate gtopk_reducer_reduce gtopk_reducer_reduce_sparse \
    gtopk_reducers_reduce)

$(GPU)/bin/test_memory: LDFLAGS += -Wl,--wrap=calloc -Wl,--wrap=free

# $(1): a test's source
define GPU_TEST
$(GPU)/bin/$(basename $(notdir $(1))): $(1) $(ON_DEVICE) $(BUILD)/libsupport.a $(BUILD)/libgtopk.a $(CMOCKA)/libs
	@mkdir -p $$(@D)
	@$$(if $$(V),,echo "  cc    $$@")
	$$(Q)$$(CC) $$(CPPFLAGS) -Itests -Itests/property @$$(CMOCKA)/cflags $$(CFLAGS) -MMD -MP -MF $$(BUILD)/gpu-$$(@F).d $$< \
	    $$(ON_DEVICE) $$(BUILD)/libsupport.a $$(BUILD)/libgtopk.a -o $$@ $$(LDFLAGS) $$(WITH_GUARDED) $$(GPU_WRAP) \
	    -Wl,-rpath,'$$$$ORIGIN' -Wl,-s @$$(CMOCKA)/libs $$(LDLIBS)
-include $(BUILD)/gpu-$(basename $(notdir $(1))).d
endef
$(foreach test,tests/gpu/bits.c $(filter $(addprefix %/,$(notdir $(GPU_TESTS:=.c))),$(C_TESTS)),$(eval $(call GPU_TEST,$(test))))

$(GPU)/bin/gpu_bench: benchmarks/gpu_bench.c tests/gpu/libcuda_count.h $(BUILD)/libgtopk.a
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CPPFLAGS) -Itests $(CFLAGS) $< -o $@ $(BUILD)/libgtopk.a $(LDFLAGS) -Wl,-s $(LDLIBS)

$(GPU)/bin/libcuda_count.so: tests/gpu/libcuda_count.c tests/gpu/libcuda_count.h csrc/device/cuda/driver.h
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CPPFLAGS) -Itests $(CFLAGS) -shared $< -o $@ $(LDFLAGS) $(LDLIBS)

$(GPU)/lib%.so: $(BUILD)/lib%.so
	@mkdir -p $(@D)
	$(Q)strip -g -o $@ $<

$(GPU_RANKS): $(GPU)/%: $(BUILD)/%
	@mkdir -p $(@D)
	$(Q)strip -o $@ $<

#= Check a GPU
#: make gpu-check-build  what a machine with a GPU needs beside the tree, in build/gpu (at most 64 MiB)
gpu-check-build: $(GPU_FILES) $(GPU_RANKS) $(GPU_TESTS) $(VENV)/.installed-mpi $(TEST_READY)
	@grep -q cubin $(CUDA_IMAGES) || { echo 'gpu-check-build: this build has no CUDA kernels (CUDA=1 shows why)' >&2; exit 1; }
	@scripts/gpu_check_build.sh $(GPU) $(VENV) $(BUILD)/tests/unit/test_wire

gpu-check-build: $(BUILD)/tests/unit/test_wire

#: make gpu-check        the same, then checks the GPU of this machine, or what stands in for one (PHASES=bits,bench ARGS=)
gpu-check: gpu-check-build
	$(VENV_PYTHON) scripts/gpu_check.py $(ARGS)

#: make gpu-results OUT=folder   keeps what a check has measured in benchmarks/results/gpu_*.json, with a picture
gpu-results: $(RUN_READY)
	$(VENV_PYTHON) benchmarks/gpu_report.py "$(OUT)" $(ARGS)

.PHONY: gpu-check-build gpu-check gpu-results
