# Tests in C: every tests/{unit,property,faults}/test_*.c is a program of its own, linked with the library's archive, with what
# it needs of tests/support/*.c, and with cmocka.

C_TESTS        := $(sort $(wildcard tests/unit/test_*.c tests/property/test_*.c tests/faults/test_*.c))
C_TEST_BINS    := $(C_TESTS:%.c=$(BUILD)/%)
SUPPORT_OBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))
CMOCKA         := $(CACHE)/cmocka
TEST_CPPFLAGS  := $(CPPFLAGS) -Itests

$(CMOCKA)/libs: scripts/find_cmocka.sh scripts/debian_package.sh
	@GTOPK_CACHE=$(CACHE) scripts/find_cmocka.sh $(CMOCKA)

$(BUILD)/tests/%.o: CPPFLAGS += -Itests

$(BUILD)/libsupport.a: $(SUPPORT_OBJECTS)
	@rm -f $@
	$(AR) rcs $@ $^

$(C_TEST_BINS): $(BUILD)/%: %.c $(BUILD)/libgtopk.a $(BUILD)/libsupport.a $(CMOCKA)/libs
	@mkdir -p $(@D)
	$(CC) $(TEST_CPPFLAGS) @$(CMOCKA)/cflags $(CFLAGS) -MMD -MP -MF $@.d $< $(BUILD)/libsupport.a $(BUILD)/libgtopk.a -o $@ \
	    $(LDFLAGS) @$(CMOCKA)/libs $(LDLIBS)

# tests/support/oom.c stands between the library and its allocations.
$(BUILD)/tests/faults/test_memory: LDFLAGS += -Wl,--wrap=calloc -Wl,--wrap=free

#: make c-tests          the tests in C (build/tests/unit/test_wire: one of them)
c-tests: $(C_TEST_BINS)
	@scripts/run_c_tests.sh $(C_TEST_BINS)

-include $(C_TEST_BINS:=.d) $(SUPPORT_OBJECTS:.o=.d)

.PHONY: c-tests
