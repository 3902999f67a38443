# The Python environment, .venv: made when a target first needs it, with pinned versions (requirements/). One stamp file
# a group of packages, so that only what changed is installed.

VENV_PYTHON := $(VENV)/bin/python
RUN_READY   := $(VENV)/.installed-run $(VENV)/.installed-gtopk
WORK_READY  := $(RUN_READY) $(VENV)/.installed-workloads
TEST_READY  := $(WORK_READY) $(VENV)/.installed-test $(VENV)/.installed-report

$(VENV)/.created: scripts/make_venv.sh
	@GTOPK_CACHE="$(CACHE)" scripts/make_venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

$(VENV)/.installed-%: requirements/%.txt scripts/install.sh $(VENV)/.created
	@scripts/install.sh "$(VENV)" $<
	@touch $@

# The source tree itself, so that `import gtopk` finds python/gtopk, which finds the library in build/.
$(VENV)/.installed-gtopk: pyproject.toml setup.py $(VENV)/.installed-build
	@echo '  pip   this source tree, editable'
	@GTOPK_BUILD_LIBRARY=0 $(VENV_PYTHON) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

#: make build            the library, the MPI module, allreduce_bench, and the Python package in .venv
build: lib module $(BUILD)/benchmarks/allreduce_bench $(BUILD)/benchmarks/baseline_mpi.so $(VENV)/.installed-gtopk

#= Train
#: make run              trains ResNet-20 on four processes, dense and gTop-k (under 10 minutes, installation included)
run: build $(RUN_READY)
	$(VENV_PYTHON) examples/run_demo.py $(ARGS)

# What they need beside torch comes after torch, so that pip leaves that as it is.
$(VENV)/.installed-workloads: $(VENV)/.installed-run

#: make workloads        what the six published workloads need, in .venv
workloads: build $(WORK_READY)

MODEL ?= resnet20
RANKS ?= 4

#: make train            one of them: MODEL=resnet20, vgg16, alexnet, resnet50, lstm or lstman4 (RANKS=4 ARGS="--steps 100")
train: workloads
	dnn="$(MODEL)" nworkers="$(RANKS)" PYTHON="$(VENV_PYTHON)" ./train.sh $(ARGS)

# The versions in requirements/ keep to this file where it is given; `make env` installs all of them.
#: make env              .venv with everything for running, testing and linting
env: build $(TEST_READY) $(VENV)/.installed-lint

.PHONY: build run workloads train env
