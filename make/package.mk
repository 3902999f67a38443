# What others get: a tree under PREFIX for C, a wheel for Python.

WHEEL_READY := $(VENV)/.installed-build $(VENV)/.installed-wheel
# Where no compiler for an older glibc is at hand, PyPI's ziglang is one; manylinux_2_28 is what PyTorch's wheels are.
WHEEL_CC       = $(VENV_PYTHON) -m ziglang cc -target $(ARCH)-linux-gnu.2.28
WHEEL_PLATFORM = manylinux_2_28_$(ARCH)
# libgcc: __builtin_cpu_supports of Zig's own runtime library finds no instruction set at all.
WHEEL_LDFLAGS  = -Wl,-s $(shell gcc -print-libgcc-file-name)

#= Packages and documentation
#: make install PREFIX=  header, libraries and pkg-config file; with the MPI module where the system has an mpicc
install: lib $(if $(SYSTEM_MPICC),module)
	install -d "$(DESTDIR)$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/lib/pkgconfig"
	install -m 644 include/gtopk.h "$(DESTDIR)$(PREFIX)/include"
	install -m 644 $(BUILD)/libgtopk.a "$(DESTDIR)$(PREFIX)/lib"
	install -m 755 $(BUILD)/libgtopk.so "$(DESTDIR)$(PREFIX)/lib/libgtopk.so.$(VERSION)"
	ln -sf libgtopk.so.$(VERSION) "$(DESTDIR)$(PREFIX)/lib/libgtopk.so.$(SOVERSION)"
	ln -sf libgtopk.so.$(SOVERSION) "$(DESTDIR)$(PREFIX)/lib/libgtopk.so"
	$(if $(SYSTEM_MPICC),install -m 755 $(BUILD)/libgtopk_mpi.so "$(DESTDIR)$(PREFIX)/lib")
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' csrc/gtopk.pc.in \
	    >"$(DESTDIR)$(PREFIX)/lib/pkgconfig/gtopk.pc"

uninstall:
	rm -f "$(DESTDIR)$(PREFIX)/include/gtopk.h" "$(DESTDIR)$(PREFIX)"/lib/libgtopk.a "$(DESTDIR)$(PREFIX)"/lib/libgtopk.so* \
	    "$(DESTDIR)$(PREFIX)"/lib/libgtopk_mpi.so "$(DESTDIR)$(PREFIX)/lib/pkgconfig/gtopk.pc"

#: make wheel            dist/gtopk-*.whl for any Linux with glibc 2.28 and any Python 3.10+, tried in fresh environments
wheel: $(WHEEL_READY)
	@echo '  wheel dist'
	$(Q)rm -rf $(BUILD)/wheel $(BUILD)/python dist
	$(Q)CC="$(WHEEL_CC)" LDFLAGS="$(WHEEL_LDFLAGS)" GTOPK_WITH_MPI=0 $(VENV_PYTHON) -m pip wheel -q --disable-pip-version-check \
	    --no-build-isolation --no-deps -w $(BUILD)/wheel .
	$(Q)PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV_PYTHON) -m auditwheel $(if $(V),-v,-q) repair -w dist --only-plat --plat $(WHEEL_PLATFORM) $(BUILD)/wheel/*.whl
	$(Q)scripts/check_wheel.sh $(VENV_PYTHON) dist/*.whl

.PHONY: install uninstall wheel
