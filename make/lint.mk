# Checks of the sources: their form, their types, what they may include and what the library may export and need.
#
# Of C, clang-tidy is what takes time: it runs for a file again when that file, a header or the settings changed.

LINT_READY  := $(VENV)/.installed-lint $(VENV)/.installed-run
C_FILES     := $(shell find csrc include tests benchmarks -name '*.[ch]' -o -name '*.cu')
TIDY_FILES  := $(LIB_SOURCES:%.c=$(BUILD)/%.tidy)
PY_FILES    := $(wildcard examples benchmarks scripts tests) python setup.py

#= Check the sources
#: make lint             format, mistakes, types, layers, exports; in C, Python and shell
lint: lint-c lint-python lint-shell lint-tree

#: make format           rewrites the sources in the form that `make lint` asks for
format: $(LINT_READY)
	$(VENV)/bin/clang-format -i $(C_FILES)
	$(VENV_PYTHON) -m ruff check -q --fix --select I $(PY_FILES)
	$(VENV_PYTHON) -m ruff format -q $(PY_FILES)

lint-c: $(LINT_READY) lib
	@echo '  lint  clang-format'
	@$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	@echo '  lint  clang-tidy (the first time minutes)'
	@$(MAKE) -s -j2 tidy
	@echo '  lint  layers, exports, dependencies'
	@$(VENV_PYTHON) scripts/check_layers.py
	@$(VENV_PYTHON) scripts/check_library.py $(BUILD)/libgtopk.so

lint-python: $(LINT_READY)
	@echo '  lint  ruff, mypy'
	@$(VENV_PYTHON) -m ruff check -q $(PY_FILES)
	@$(VENV_PYTHON) -m ruff format -q --check $(PY_FILES) || \
	    { echo 'ruff format: the files above are not in form; `make format` rewrites them' >&2; exit 1; }
	@$(VENV_PYTHON) -m mypy --no-error-summary

lint-shell: $(LINT_READY)
	@echo '  lint  shellcheck'
	@$(VENV)/bin/shellcheck $(wildcard scripts/*.sh tests/*/*.sh examples/*.sh benchmarks/*/*.sh) train.sh .ci/run

lint-tree: $(LINT_READY)
	@echo '  lint  what is committed'
	@$(VENV_PYTHON) scripts/check_tree.py
	@$(VENV_PYTHON) tests/mutants/run.py --check

tidy: $(TIDY_FILES)

$(BUILD)/%.tidy: %.c .clang-tidy $(filter %.h,$(C_FILES))
	@mkdir -p $(@D)
	@$(VENV)/bin/clang-tidy --quiet $< -- $(CPPFLAGS) -std=c11 $(call isa_flags,$<) 2>$@.log || { cat $@.log >&2; exit 1; }
	@touch $@

.PHONY: lint format lint-c lint-python lint-shell lint-tree tidy
