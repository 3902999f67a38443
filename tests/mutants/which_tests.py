"""Which tests are to notice a mutant."""

from __future__ import annotations

from mutants import Mutant

# In this order, since the first ones are fast and catch most. After the program: the device and the transport.
TESTS = [
    "property/test_exchange",
    "property/test_split",
    "property/test_nodes",
    "unit/test_nodes_reducer",
    "unit/test_rollback",
    "unit/test_residual_bf16",
    "unit/test_cost",
    "unit/test_choice",
    "property/test_cpu_large",
    "unit/test_reducer",
    "unit/test_reducer_ranks",
    "unit/test_reducers_together",
    "unit/test_peers",
    "unit/test_collectives",
    "unit/test_link",
    "unit/test_survivors",
    "unit/test_state",
    "unit/test_schedule",
    "unit/test_wire",
    "unit/test_wire_indices",
    "unit/test_wire_convert",
    "unit/test_message",
    "unit/test_device_reference",
    "unit/test_device_reference_message",
    "property/test_device",
    "unit/test_transport",
    "faults/test_faults",
    "faults/test_memory",
    "unit/test_reducer guarded thread",
    "property/test_exchange guarded thread",
    "property/test_exchange guarded ordered",
    "unit/test_reducer_ranks guarded ordered",
    "faults/test_queue guarded thread",
    "faults/test_queue guarded ordered",
    "faults/test_faults guarded ordered",
    "unit/test_cuda_driver",
]
# For what is about NCCL: these notice first.
NCCL_TESTS = ["unit/test_wire", "property/test_device", "faults/test_nccl", "faults/test_nccl_processes"]
# For the kernels, which these have compiled as C: the library needs no others then.
KERNEL_TESTS = ["unit/test_cuda_nodes", "unit/test_cuda_kernels", "unit/test_cuda_races", "property/test_cuda"]
# The same for mutants of the Python package: arguments of pytest.
PYTHON_TESTS = [
    "test_torch_session.py",
    "test_torch_local.py",
    "test_torch_wrapping.py",
    "test_torch_optimizer.py",
    "test_torch_rebuild.py",
    "test_torch_checkpoint.py",
    "test_torch_momentum.py",
    "test_torch_ddp.py",
    "test_torch_distributed.py::test_mpirun[2]",
    "test_torch_distributed.py::test_checkpoints_in_new_processes[3-2]",
    "test_torch_distributed.py::test_torchrun[2]",
    "test_torch_fsdp.py::test_training_and_checkpoints_on_as_many_nodes_and_shards",
    "test_torch_fsdp.py::test_sharded_checkpoints_on_other_nodes_and_shards",
    "test_cuda_reducer.py",
    "test_cuda_ranks.py::test_mpirun",
    "test_cuda_ranks.py::test_torchrun",
]
# For what comes after the loss of a rank.
LOSS_TESTS = ["test_roll_call.py", "test_elastic.py::test_three_go_on"]
MPI_LOSS_TESTS = ["test_elastic.py::test_mpi_goes_on_without_ranks_that_are_lost"]
EXAMPLE_TESTS = [
    "test_examples.py::test_runs_are_compared_up_to_a_step_that_both_have_done",
    "test_recipes.py",
    "test_workloads.py",
]


def is_python(mutant: Mutant) -> bool:
    """Whether tests in Python are to notice."""
    return mutant.file.endswith(".py") or is_of_mpi_losses(mutant)


def is_of_mpi_losses(mutant: Mutant) -> bool:
    return mutant.name.startswith("over MPI: ")


def is_of_losses(mutant: Mutant) -> bool:
    return mutant.name.startswith("loss: ")


def is_of_nccl(mutant: Mutant) -> bool:
    return "nccl" in mutant.file or "data.c" in mutant.file or "NCCL" in mutant.name


def is_of_kernels(mutant: Mutant) -> bool:
    return mutant.name.startswith("bf16 on a GPU: ") or mutant.file.endswith(
        (".cu", "cuda/launch.c", "cuda/launch_spans.c", "cuda/keys.h", "cuda/sets.h")
    )


def tests_for(mutants: list[Mutant]) -> list[str]:
    """Of mutants that are all in Python, or none of them."""
    if all(is_of_mpi_losses(mutant) for mutant in mutants):
        return MPI_LOSS_TESTS
    if all(is_of_losses(mutant) for mutant in mutants):
        return LOSS_TESTS
    if is_python(mutants[0]):
        return EXAMPLE_TESTS if all(mutant.file.startswith("examples/") for mutant in mutants) else PYTHON_TESTS
    if all(is_of_kernels(mutant) for mutant in mutants):
        return KERNEL_TESTS
    return NCCL_TESTS if all(is_of_nccl(mutant) for mutant in mutants) else TESTS
