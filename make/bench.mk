# The benchmarks. What they print is described at the head of each; results worth keeping lie in benchmarks/results/.

MPIRUN     := $(MPICC:mpicc=mpirun)
MPI_AS_ROOT := $(if $(filter 0,$(shell id -u)),OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
# More ranks than cores: those that wait give way to those that compute. These are Open MPI's options.
RANKS      ?= 4
MPI_OPTIONS ?= --oversubscribe --bind-to none --mca mpi_yield_when_idle 1

#= Measure
#: make bench            dense, top-k and gTop-k between 4 local ranks, then the CPU's own speed; a few minutes
bench: bench-allreduce bench-select

#: make bench-allreduce  the first of these (RANKS=4, ARGS="--help")
bench-allreduce: lib module $(BUILD)/benchmarks/allreduce_bench $(BUILD)/benchmarks/baseline_mpi.so
	$(MPI_AS_ROOT) GTOPK_MPI_MODULE="$(BUILD)/libgtopk_mpi.so" "$(MPIRUN)" -n $(RANKS) $(MPI_OPTIONS) \
	    $(BUILD)/benchmarks/allreduce_bench $(ARGS)

#: make bench-network    methods side by side over emulated networks; needs root (ARGS="--help")
bench-network: build $(RUN_READY) $(VENV)/.installed-network
	$(VENV_PYTHON) benchmarks/network_bench.py --bench $(BUILD)/benchmarks/allreduce_bench $(ARGS)

#: make bench-overlap    DDP's exchange during backward against our hook's after it, over emulated networks (ARGS="--help")
bench-overlap: build $(RUN_READY) $(VENV)/.installed-network
	$(VENV_PYTHON) benchmarks/network_overlap.py $(ARGS)

#: make bench-network-training  the loss of small trainings over time, on such networks (ARGS="--help")
bench-network-training: build $(RUN_READY)
	$(VENV_PYTHON) benchmarks/network_training.py $(ARGS)

bench-select: $(BUILD)/benchmarks/select_bench
	$(BUILD)/benchmarks/select_bench $(ARGS)

#: make report           what was measured (benchmarks/results), as one HTML page: build/report.html
report: $(VENV)/.installed-run $(VENV)/.installed-report
	@$(VENV_PYTHON) benchmarks/results_page.py --output "$(BUILD)/report.html" $(ARGS)

.PHONY: bench bench-allreduce bench-network bench-network-training bench-overlap bench-select report

# ---- many ranks, simulated ----

SIMGRID := $(CACHE)/simgrid

$(SIMGRID)/libs: scripts/find_simgrid.sh scripts/debian_package.sh
	@GTOPK_CACHE="$(CACHE)" scripts/find_simgrid.sh "$(SIMGRID)"

# smpirun loads it as a library, and calls its main once for each rank.
$(BUILD)/benchmarks/scale.so: benchmarks/scale/scale.c $(BUILD)/libgtopk.a $(SIMGRID)/libs
	@mkdir -p $(@D)
	@$(if $(V),,echo "  cc    $@")
	$(Q)$(CC) $(CPPFLAGS) @$(SIMGRID)/cflags $(CFLAGS) -fvisibility=default -shared $< $(BUILD)/libgtopk.a -o $@ $(LDFLAGS) \
	    @$(SIMGRID)/libs $(LDLIBS)

#: make bench-scale      up to 1024 simulated ranks under SimGrid, into benchmarks/results/scale.json (ARGS="--help")
bench-scale: $(BUILD)/benchmarks/scale.so $(VENV)/.installed-run
	$(VENV_PYTHON) benchmarks/scale/scale.py --program "$(BUILD)/benchmarks/scale.so" --smpirun "$(SIMGRID)/smpirun" $(ARGS)

#: make bench-efficiency  scaling efficiency of the published workloads at 1 Gb/s, simulated, beside the published one
bench-efficiency: $(BUILD)/benchmarks/scale.so $(VENV)/.installed-run
	$(VENV_PYTHON) benchmarks/scale/efficiency.py --program "$(BUILD)/benchmarks/scale.so" --smpirun "$(SIMGRID)/smpirun" $(ARGS)

.PHONY: bench-scale bench-efficiency
