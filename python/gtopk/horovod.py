"""Horovod's names for PyTorch programs: ``import gtopk.horovod as hvd`` in place of ``import horovod.torch as hvd``.

Thin: everything is done elsewhere in gtopk. What Horovod has and gtopk has not raises `UnsupportedError`, which says so.

Examples
--------
>>> import torch
>>> import gtopk.horovod as hvd
>>> hvd.init()
>>> model = torch.nn.Linear(4, 1)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * hvd.size())
>>> hvd.broadcast_parameters(model.state_dict(), root_rank=0)
>>> optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), op=hvd.Average)
"""

from __future__ import annotations

import socket
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from . import _c_api
from . import comm as _comm
from .comm import Average, Op, Sum, barrier, is_initialized, local_rank, rank, size
from .errors import GtopkError as HorovodInternalError
from .errors import InvalidError, StateError, UnsupportedError
from .torch import DistributedOptimizer as _DistributedOptimizer
from .torch.broadcast import broadcast_optimizer_state as _broadcast_optimizer_state
from .torch.broadcast import broadcast_parameters
from .torch.local_options import exchanges_weights
from .torch.mixin import DistributedMixin
from .torch.optimizer import distributed_class

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "HorovodInternalError",
    "Sum",
    "allgather",
    "allgather_object",
    "allreduce",
    "allreduce_",
    "barrier",
    "broadcast",
    "broadcast_",
    "broadcast_object",
    "broadcast_optimizer_state",
    "broadcast_parameters",
    "ccl_built",
    "cuda_built",
    "ddl_built",
    "gloo_built",
    "gloo_enabled",
    "init",
    "is_initialized",
    "join",
    "local_rank",
    "local_size",
    "mpi_built",
    "mpi_enabled",
    "nccl_built",
    "rank",
    "rocm_built",
    "shutdown",
    "size",
]

# Horovod's other public names.
_MISSING = frozenset(
    {
        "Adasum",
        "Max",
        "Min",
        "ProcessSet",
        "Product",
        "SyncBatchNorm",
        "add_process_set",
        "allgather_async",
        "allreduce_async",
        "allreduce_async_",
        "alltoall",
        "alltoall_async",
        "broadcast_async",
        "broadcast_async_",
        "cross_rank",
        "cross_size",
        "global_process_set",
        "grouped_allgather",
        "grouped_allgather_async",
        "grouped_allreduce",
        "grouped_allreduce_",
        "grouped_allreduce_async",
        "grouped_allreduce_async_",
        "grouped_reducescatter",
        "grouped_reducescatter_async",
        "mpi_threads_supported",
        "poll",
        "reducescatter",
        "reducescatter_async",
        "remove_process_set",
        "run",
        "sparse_allreduce_async",
        "start_timeline",
        "stop_timeline",
        "synchronize",
    }
)


def __getattr__(name: str) -> NoReturn:
    if name == "elastic":
        raise UnsupportedError(
            "gtopk.horovod has no elastic: gtopk.elastic goes on with the ranks that are left after a loss, and its Meeting "
            "takes the place of hvd.elastic.run; see the guide on losing a rank"
        )
    if name in _MISSING:
        raise UnsupportedError(
            f"gtopk.horovod has no {name}: gtopk exchanges gradients in optimizer.step() and has {', '.join(__all__)}; keep "
            "Horovod for what needs more"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Compression:
    """How values travel, as Horovod names it. ``none`` is gtopk's own default."""

    none = None
    fp16 = "fp16"


class _Job:
    """What Horovod's functions without arguments refer to."""

    local_size: int | None = None
    optimizers: ClassVar[weakref.WeakSet[torch.optim.Optimizer]] = weakref.WeakSet()


def init(comm: Any = None, process_sets: Any = None) -> None:
    """Joins the processes of this job: `gtopk.init`. Collective."""
    if comm is not None or process_sets:
        raise UnsupportedError(
            "gtopk.horovod.init takes no comm and no process_sets: all processes of the job take part"
        )
    _comm.init()
    hosts = _comm.current().allgather_json(socket.gethostname())
    _Job.local_size = hosts.count(hosts[rank()])


def shutdown() -> None:
    """Leaves the job: `gtopk.shutdown`."""
    _Job.local_size = None
    _comm.shutdown()


def local_size() -> int:
    """Number of processes on this host."""
    if _Job.local_size is None:
        raise StateError("gtopk.horovod is not initialised: call hvd.init() first, on every rank")
    return _Job.local_size


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: str | None = Compression.none,
    backward_passes_per_step: int = 1,
    op: Op = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: Any = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """`gtopk.DistributedOptimizer` with Horovod's arguments.

    Parameters
    ----------
    optimizer, named_parameters, backward_passes_per_step
        As there. The same object is returned.
    compression : Compression
        ``Compression.fp16`` sends values as fp16; ``Compression.none`` stands for gtopk's default.
    op : Op
        ``Average``, or ``Sum``: the average times the number of ranks.
    gradient_predivide_factor, num_groups, groups
        Accepted, and of no effect: the average is computed in float32, and all gradients are one group.
    sparse_as_dense, process_set
        Not supported: an error unless left out.
    **options
        Of `gtopk.DistributedOptimizer`: density, algorithm, ...
    """
    del num_groups, groups
    _check_op(op)
    if sparse_as_dense:
        raise UnsupportedError("sparse_as_dense=True is not supported: make torch.nn.Embedding with sparse=False")
    if process_set is not None:
        raise UnsupportedError("gtopk has no process sets: all processes of the job take part")
    if gradient_predivide_factor != 1.0 and op is not Average:
        raise InvalidError("gradient_predivide_factor is for op=hvd.Average")
    if compression is not None:
        options.setdefault("value_type", compression)
    if op is Sum and exchanges_weights(options.get("local_steps", 1), options.get("exchange")):
        raise UnsupportedError("op=hvd.Sum is for gradients, and local steps exchange weights: leave out one of them")
    wrapped = _DistributedOptimizer(
        optimizer, named_parameters, backward_passes_per_step=backward_passes_per_step, **options
    )
    if isinstance(wrapped, DistributedMixin):
        wrapped.__class__ = distributed_class(  # type: ignore[assignment]
            type(wrapped).__bases__[0], _StepAfterSynchronize
        )
        wrapped._gtopk.session.sums = op is Sum
    _Job.optimizers.add(wrapped)
    return wrapped


class _StepAfterSynchronize(DistributedMixin):
    """As in Horovod, `step()` after `synchronize()` applies what that has exchanged, with a warning."""

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """`DistributedMixin.step`, where it makes sense as inside `skip_synchronize()`."""
        sync = self._gtopk
        if closure is not None or sync.skipping or not sync.holds_update(self):
            return super().step(closure, **kwargs)
        warnings.warn(
            "optimizer.step() without skip_synchronize() after optimizer.synchronize(): taken as if it were inside, since "
            "the gradients were exchanged already; write `with optimizer.skip_synchronize(): optimizer.step()`",
            stacklevel=2,
        )
        with self.skip_synchronize():
            return super().step(**kwargs)


# As for DistributedMixin.step.
_StepAfterSynchronize.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
_StepAfterSynchronize.step.hooked = True  # type: ignore[attr-defined]


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int = 0, model: Any = None) -> None:
    """`gtopk.broadcast_optimizer_state`. Collective."""
    del model
    _broadcast_optimizer_state(optimizer, root_rank)


def allreduce(
    tensor: Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: str | None = Compression.none,
    op: Op | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Tensor:
    """The average, or sum, of every rank's tensor, as a new tensor. Collective.

    The average of integers is rounded down. The tensor may require a gradient, but the result has none: its `backward`
    raises. `name` and `compression` are accepted and of no effect: ranks must call in the same order.
    """
    del name, compression
    if op is None:
        op = Sum if average is False else Average
    _check_op(op)
    scaled = tensor if prescale_factor == 1.0 else tensor * prescale_factor
    whole = op is Average and not (scaled.is_floating_point() or scaled.is_complex() or scaled.dtype == torch.bool)
    total: Tensor = _comm.allreduce(scaled, Sum if whole else op)
    if whole:
        total = torch.div(total, size(), rounding_mode="floor")
    return total if postscale_factor == 1.0 else total * postscale_factor


def allreduce_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`allreduce` in place."""
    with torch.no_grad():
        return tensor.copy_(allreduce(tensor, *args, **kwargs))


def allgather(tensor: Tensor, name: str | None = None) -> Tensor:
    """Every rank's tensor, joined along the first dimension. Collective."""
    del name
    gathered: Tensor = _comm.allgather(tensor)
    return gathered


def allgather_object(obj: Any, name: str | None = None) -> list[Any]:
    """Every rank's object, in the order of ranks. Collective. They travel as pickles, as in `broadcast_object`."""
    return [broadcast_object(obj, root, name) for root in range(size())]


def broadcast(tensor: Tensor, root_rank: int, name: str | None = None) -> Tensor:
    """A new tensor with root's values. Collective."""
    del name
    copy: Tensor = _comm.broadcast(tensor, root_rank)
    return copy


def broadcast_(tensor: Tensor, root_rank: int, name: str | None = None) -> Tensor:
    """Overwrites the tensor with root's values. Collective."""
    del name
    _comm.broadcast_(tensor, root_rank)
    return tensor


def broadcast_object(obj: Any, root_rank: int = 0, name: str | None = None) -> Any:
    """Root's object, on every rank. Collective; see `gtopk.broadcast_object`."""
    del name
    return _comm.broadcast_object(obj, root_rank)


def join(device: int = -1) -> int:
    """`optimizer.join()` of the program's one optimizer. Collective."""
    del device
    if size() == 1:
        return 0
    optimizers = list(_Job.optimizers)
    if len(optimizers) != 1 or not isinstance(optimizers[0], DistributedMixin):
        raise StateError(
            f"hvd.join() is for one distributed optimizer, and there are {len(optimizers)}: call optimizer.join()"
        )
    return optimizers[0].join()


def mpi_enabled() -> bool:
    """True when the processes talk through MPI."""
    return _comm.current().transport == "mpi"


def gloo_enabled() -> bool:
    """True when the processes talk through torch.distributed with gloo."""
    return _comm.current().transport == "torch"


def mpi_built() -> bool:
    """True: MPI is opened when it is needed."""
    return True


def gloo_built() -> bool:
    """True when this PyTorch has gloo."""
    return torch.distributed.is_available() and torch.distributed.is_gloo_available()


def nccl_built() -> bool:
    """False: `init` takes MPI or gloo. ``gtopk.init(transport="nccl")`` before it takes NCCL."""
    return False


def cuda_built() -> bool:
    """True when the library has kernels for GPUs."""
    return b"cuda=none" not in _c_api.library().gtopk_build_info()


def rocm_built() -> bool:
    """False: there are no kernels for AMD's GPUs."""
    return False


def ddl_built() -> bool:
    """False: IBM's DDL is not used."""
    return False


def ccl_built() -> bool:
    """False: oneCCL is not used."""
    return False


def _check_op(op: Any) -> None:
    if op is not Average and op is not Sum:
        raise UnsupportedError(f"op is {op!r}, but gtopk has hvd.Average and hvd.Sum only")
