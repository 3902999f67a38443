"""torch.distributed as a transport: messages of the library travel through a gloo group of its own.

Knows nothing of sets and rounds: it moves bytes between memory that the library owns. The library calls the functions
on a helper thread of its own, one at a time; ctypes takes the GIL for that.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from . import _c_api, _launcher, _signals, _slurm
from .errors import GtopkError, InvalidError, NotFoundError, StateError, TransportError, UnsupportedError

_log = logging.getLogger("gtopk")

_WRITABLE = 0x200  # PyBUF_WRITE
_view_of_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of_memory.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view_of_memory.restype = ctypes.py_object


class TorchDistributed:
    """The ranks of a process group, and the callbacks that the C library sends and receives through.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, list of int, or None
        Whose ranks to use, or which; None: all. It is not used for messages itself, so its backend may be any.
    timeout : float
        Seconds that a sum over all ranks may take; messages have a limit of their own.
    setup_timeout : float
        Seconds that making the group may take.
    """

    def __init__(self, group: Any, timeout: float, setup_timeout: float) -> None:
        self._torch, self._dist = _import()
        self._slurm_node: str | None = None
        self._ensure_default_group(timeout)
        self._group: Any = None
        self._idle = threading.Event()  # no call of the library is in torch
        self._idle.set()
        try:
            ranks = group
            if not isinstance(group, list):
                ranks = self._dist.get_process_group_ranks(group if group is not None else self._dist.group.WORLD)
            if self._dist.get_rank() not in ranks:
                raise InvalidError(f"rank {self._dist.get_rank()} is no member of the given process group")
            self.global_ranks = list(ranks)
            self._group = self._dist.new_group(
                ranks,
                backend="gloo",
                timeout=timedelta(seconds=setup_timeout),
                use_local_synchronization=group is not None,
            )
            if setup_timeout != timeout:
                self._dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout), self._group)
            self.rank = self.global_ranks.index(self._dist.get_rank())
            self.size = len(self.global_ranks)
            self.description = f"torch (gloo, PyTorch {self._torch.__version__})"
            # Kept here: the library calls them as long as the communicator lives.
            self.callbacks = _c_api.Callbacks(
                struct_size=ctypes.sizeof(_c_api.Callbacks),
                exchange=_c_api.ExchangeFn(self._exchange),
                allreduce=_c_api.AllreduceFn(self._allreduce),
                abort=_c_api.AbortFn(_signals.shield(self.close)),
            )
        except GtopkError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise TransportError(f"torch.distributed cannot make a gloo group: {_first_line(error)}") from error

    def close(self) -> None:
        """Closes the connections, so that ranks that wait for this one notice. The default group stays."""
        group, self._group = self._group, None
        if group is not None and self._dist.is_initialized():
            abort = getattr(group, "abort", None)
            if abort is not None:
                self._quietly(abort)
            self._quietly(lambda: self._dist.destroy_process_group(group))

    def settle(self, seconds: float) -> None:
        """After `close`: waits for the library's helper thread to leave torch, which the end of the connections makes
        it do. Python must not end before: a thread inside C++ that asks for the GIL then brings the process down."""
        if not self._idle.wait(seconds):
            _log.debug("a call of torch.distributed did not end within %g s", seconds)

    def _ensure_default_group(self, timeout: float) -> None:
        """Initialises torch.distributed unless the program did. It is never undone: a second initialisation would find
        the first one's addresses in the store of torchrun."""
        if self._dist.is_initialized():
            return
        place, ranks = self._meeting_place()
        try:
            self._dist.init_process_group("gloo", timeout=timedelta(seconds=timeout), **ranks)
        except Exception as error:
            raise TransportError(
                f"torch.distributed.init_process_group failed at {place}: {_first_line(error)} (MASTER_ADDR and "
                "MASTER_PORT name another place; every process must call this, and reach it)"
            ) from error

    def _meeting_place(self) -> tuple[str, dict[str, Any]]:
        """Where the ranks find each other, and what init_process_group does not take from the environment itself."""
        missing = [name for name in _launcher.BY_HAND if name not in os.environ]
        if not missing:
            return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", {}
        if not _slurm.started():
            raise InvalidError(
                f"torch.distributed is not initialised, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
                "not set: start the program with torchrun, or call torch.distributed.init_process_group first"
            )
        task = _slurm.task()
        self._slurm_node = task.node
        place = f"[{task.host}]:{task.port}" if ":" in task.host else f"{task.host}:{task.port}"
        return place, {"init_method": f"tcp://{place}", "rank": task.rank, "world_size": task.size}

    @property
    def node(self) -> str | None:
        """How the launcher calls the machine that this rank is on; None: it does not say."""
        if "GROUP_RANK" in os.environ and "LOCAL_RANK" in os.environ:  # torchrun
            return f"torchrun {os.environ['GROUP_RANK']}"
        return self._slurm_node

    # ---- called by the library ----

    def _exchange(
        self,
        _context: int,
        to: int,
        send: int,
        send_bytes: int,
        source: int,
        receive: int,
        receive_bytes: int,
        timeout: float,
        error: int,
    ) -> int:
        def run() -> None:
            limit = _limit(timeout)
            works = []
            if source >= 0:
                data = self._bytes(receive, receive_bytes)
                works.append(self._dist.irecv(data, self.global_ranks[source], group=self._group))
            if to >= 0:
                data = self._bytes(send, send_bytes)
                works.append(self._dist.isend(data, self.global_ranks[to], group=self._group))
            for work in works:
                work.wait(limit)

        return self._guarded(run, error)

    def _allreduce(self, _context: int, buffer: int, count: int, timeout: float, error: int) -> int:
        def run() -> None:
            values = self._bytes(buffer, 4 * count).view(self._torch.float32)
            self._dist.all_reduce(values, group=self._group, async_op=True).wait(_limit(timeout))

        return self._guarded(run, error)

    def _guarded(self, run: Callable[[], None], error: int) -> int:
        """0, or 1 with the exception's text in the 256 bytes at `error`: nothing may be raised into C."""
        self._idle.clear()
        try:
            if self._group is None:  # torch would take its default group
                raise StateError("the group was closed")
            run()
        except BaseException as raised:  # noqa: BLE001 - the caller is C
            text = _explained(_first_line(raised)).encode("utf-8", "replace")[: _c_api.ERROR_TEXT_SIZE - 1]
            if error:
                ctypes.memmove(error, text + b"\0", len(text) + 1)
            return 1
        finally:
            self._idle.set()
        return 0

    def _bytes(self, address: int, length: int) -> Any:
        """The library's memory as a uint8 tensor, without copying."""
        if not length:
            return self._torch.empty(0, dtype=self._torch.uint8, device="cpu")
        return self._torch.frombuffer(_view_of_memory(address, length, _WRITABLE), dtype=self._torch.uint8)

    def _quietly(self, end: Callable[[], Any]) -> None:
        try:
            end()
        except Exception as error:  # noqa: BLE001 - the group may be broken, which is why it is ended
            _log.debug("ending a process group: %s", _first_line(error))


def _import() -> tuple[Any, Any]:
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        raise NotFoundError(
            f"the transport of torchrun needs PyTorch, which cannot be imported ({error}): install torch, or start the "
            "program with mpirun"
        ) from error
    if not (dist.is_available() and dist.is_gloo_available()):
        raise UnsupportedError("this PyTorch was built without torch.distributed or gloo: use mpirun, or another build")
    return torch, dist


def _limit(timeout: float) -> timedelta:
    # gloo counts milliseconds, and takes 0 for no limit.
    return timedelta(milliseconds=max(1, round(timeout * 1000)))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _explained(text: str) -> str:
    """gloo tells the end of a process in the words of its sockets."""
    if re.search(r"Connection (closed|reset) by peer|Broken pipe", text):
        return (
            "that rank closed its connection: it failed (see its own output), or ended, its loop being shorter than this "
            "one's; then call optimizer.join() after a rank's last step. " + text
        )
    return text
