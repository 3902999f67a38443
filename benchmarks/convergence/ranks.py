"""Ranks that are threads of this process, with the library's own exchange between them: training at P ranks without
launcher and without network."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import gtopk
from gtopk import _c_api

__all__ = ["on_ranks"]


class ThreadComm(gtopk.Comm):
    """A rank that is a thread, which the package does not offer. Of `a_node` ranks one after the other each is on the same
    node."""

    def __init__(self, group: ctypes.c_void_p, rank: int, size: int, timeout: float, a_node: int) -> None:
        config = _c_api.CommConfig(struct_size=ctypes.sizeof(_c_api.CommConfig), transport=b"thread", timeout=timeout)
        config.group, config.rank, config.size = group, rank, size
        config.node = f"node {rank // a_node}".encode()
        handle = ctypes.c_void_p()
        _c_api.check(_c_api.library().gtopk_comm_create(ctypes.byref(handle), ctypes.byref(config)))
        self._handle, self._torch, self.pid, self.transport = handle.value, None, os.getpid(), "thread"
        self.asked, self.timeout, self.warn_after, self.parts = "thread", timeout, None, {}
        self.rank, self.size, self.local_rank = rank, size, rank % a_node


def on_ranks(
    size: int, part: Callable[[gtopk.Comm], Any], timeout: float = 600.0, ranks_a_node: int | None = None
) -> list[Any]:
    """Calls `part` in `size` threads, each with its communicator, and gives what they return, by rank.

    All are on one node, or `ranks_a_node` on each.

    Where a rank fails, the others are told that it left, or wait for it until `timeout`; its error is raised, not
    theirs.
    """
    group, results, errors = ctypes.c_void_p(), [None] * size, []
    _c_api.check(_c_api.library().gtopk_thread_group_create(ctypes.byref(group), size, 0))

    def run(rank: int) -> None:
        try:
            with ThreadComm(group, rank, size, timeout, ranks_a_node or size) as comm:
                try:
                    results[rank] = part(comm)
                except Exception as error:  # noqa: BLE001  # it is raised below
                    errors.append(error)  # before others see that this rank leaves: the first one is the cause
        except Exception as error:  # noqa: BLE001  # of making or closing the communicator
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _c_api.library().gtopk_thread_group_destroy(group)
    if errors:
        raise errors[0]
    return results
