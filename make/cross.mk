# The same bits everywhere: promise 1 across devices, instruction sets, compilers and architectures. Other compilers and
# architectures are used where they are found, and said to be skipped where not.
#
# tests/property/digest.c prints hashes of a fixed job; the builds under test leave and compare them in $(DIGESTS).

DIGESTS   := $(BUILD)/digests
DIGEST    := $(BUILD)/tests/property/digest
# What other builds run of the tests in C: what does arithmetic, or reads and writes the wire.
BITS_TESTS := $(addprefix $(BUILD)/tests/,property/test_device property/test_cpu_large property/test_exchange unit/test_wire \
    unit/test_wire_indices unit/test_wire_convert)

$(DIGEST): LDFLAGS += $(WITH_GUARDED)
$(DIGEST): $(BUILD)/%: %.c $(BUILD)/libsupport.a $(BUILD)/libgtopk.a
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -MF $@.d $< $(BUILD)/libsupport.a $(BUILD)/libgtopk.a \
	    -o $@ $(LDFLAGS) $(LDLIBS)

-include $(DIGEST).d

#= Other compilers and machines
#: make test-bits        one job on every device, instruction set and number of threads: the same bits
test-bits: $(DIGEST)
	@rm -rf $(DIGESTS)
	@scripts/compare_digests.sh $(DIGESTS) "$(notdir $(CC))" $(DIGEST)

#: make test-clang       tests in C built by clang, without a warning, and its bits compared with those of CC
test-clang: test-bits
	@scripts/cross_tests.sh clang $(BUILD)-clang $(DIGESTS)

#: make test-aarch64     tests in C built for AArch64 (NEON), under qemu, and its bits compared with those of this machine
test-aarch64: test-bits
	@scripts/cross_tests.sh aarch64 $(BUILD)-aarch64 $(DIGESTS)

# Run by cross_tests.sh in a make of its own, with that build's BUILD, CC and RUNNER.
bits-tests: lib $(BITS_TESTS) $(DIGEST)
	@scripts/run_c_tests.sh $(BITS_TESTS)
	@scripts/compare_digests.sh "$(COMPARE_WITH)" "$(notdir $(CC))" $(DIGEST)

.PHONY: test-bits test-clang test-aarch64 bits-tests
