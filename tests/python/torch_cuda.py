"""Tensors on GPUs for tests: PyTorch's own where it finds a GPU, else those of a PyTorch without CUDA on the stand-in for
the driver (tests/support/libcuda_standin.c).

Then a tensor on "cuda:0" is an ordinary torch.Tensor whose memory nobody can read: an operator first has the stand-in do
what is queued on its stream, and no more; then it runs on the CPU, with the memory opened to it. `install` is to be called
before gtopk looks for a driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

import torch
from cuda_standin import BUILD, STANDIN, controls
from torch.utils._pytree import tree_map

REAL = torch.cuda.is_available()
# Of torch.distributed, for DDP. "fake" does nothing: what DDP itself sends is the same on all ranks in these tests.
BACKEND = "gloo" if REAL else "cpu:gloo,cuda:fake"
TORCH_PART = BUILD / "libtorch_cuda_standin.so"


def available():
    """Whether there is a GPU, or what stands in for one."""
    return REAL or (STANDIN.is_file() and TORCH_PART.is_file())


_installed = None
_undo = []


def install():
    """The stand-in's controls; None on a real GPU, where nothing is to be done."""
    global _installed
    if REAL or _installed:
        return _installed
    import torch._dynamo  # looks at torch.cuda's functions
    import torch.testing._internal.distributed.fake_pg

    control = controls()
    control.driver(2, 12080, b"")
    part = _torch_part()
    part.torch_cuda_use(ctypes.byref(control))
    _undo.append(lambda: part.torch_cuda_use(None))
    before = os.environ.get("GTOPK_CUDA_DRIVER"), torch.get_num_threads()
    _undo.append(lambda: _environment(*before))
    _environment(str(STANDIN), 1)  # memory is opened to the thread that touches it
    _patch(part, _Memory(control))
    _installed = control
    return control


def uninstall():
    """PyTorch as it was. Tensors on the stand-in may go on living."""
    global _installed
    while _undo:
        _undo.pop()()
    _installed = None


def _environment(driver, threads):
    os.environ.pop("GTOPK_CUDA_DRIVER", None)
    if driver:
        os.environ["GTOPK_CUDA_DRIVER"] = driver
    torch.set_num_threads(threads)


@functools.cache
def _torch_part():
    part = ctypes.CDLL(str(TORCH_PART))
    part.torch_cuda_use.argtypes = (ctypes.c_void_p,)
    part.torch_cuda_stream.restype = ctypes.c_int64
    part.torch_cuda_set_stream.argtypes = (ctypes.c_int, ctypes.c_int64)
    part.operators = _Operators(controls(), part)
    return part


# ---- operators ----


class _Operators:
    """Every operator of the CPU, on memory of the stand-in."""

    # These have a kernel for all devices alike, which asks for one of CUDA's own further down.
    LISTED = ("copy_", "_local_scalar_dense", "resize_")

    def __init__(self, control, part):
        self.control, self.part = control, part
        self.libraries = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]  # kept alive
        self.libraries[0].fallback(self.run, "CUDA")
        for name in self.LISTED:
            op = getattr(torch.ops.aten, name).default
            self.libraries[1].impl(name, lambda *args, op=op, **options: self.run(op, *args, **options), "CUDA")

    def run(self, op, *args, **options):
        found = _Arguments(anywhere=op is torch.ops.aten.copy_.default)
        args, options = tree_map(found.host, args), tree_map(found.host, options)
        device = found.device
        if isinstance(options.get("device"), torch.device) and options["device"].type == "cuda":
            device = options["device"]
            options["device"] = torch.device("cpu")
        index = self.part.torch_cuda_device() if device is None or device.index is None else device.index
        for gpu in {index, *(cuda.get_device() for cuda, _ in found.mine)}:
            self.control.pass_(gpu, self.part.torch_cuda_stream(gpu))
        self.control.peek(1)
        try:
            results = op(*args, **options)
            found.resize(index)
            return tree_map(lambda out: found.back(out, index), results)
        finally:
            self.control.peek(0)


class _Arguments:
    """The tensors of one call, as tensors of the CPU on the same memory, and back."""

    def __init__(self, anywhere=False):
        self.anywhere = anywhere  # they need not be on one GPU
        self.device = None
        self.mine = []  # pairs: of CUDA and of the CPU

    def host(self, x):
        if not isinstance(x, torch.Tensor) or not x.is_cuda:
            return x
        if x.dim() > 0 and self.device is not None and self.device != x.device and not self.anywhere:
            raise RuntimeError(f"tensors on {self.device} and on {x.device}")
        self.device = self.device or x.device
        self.mine.append((x, _host(x)))
        return self.mine[-1][1]

    def resize(self, index):
        """Outputs that the operator has given another size."""
        for cuda, cpu in self.mine:
            if cpu.shape != cuda.shape:
                cuda.data = self.new(cpu, index)

    def back(self, out, index):
        if not isinstance(out, torch.Tensor) or out.layout is not torch.strided:
            return out
        for cuda, cpu in self.mine:
            if out is cpu:
                return cuda
        for cuda, cpu in self.mine:
            if out.dtype == cpu.dtype and out.numel() and _start(out) == _start(cpu):
                return torch.as_strided(cuda, out.shape, out.stride(), out.storage_offset())
        return self.new(out, index)

    @staticmethod
    def new(out, index):
        made = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=f"cuda:{index}")
        if out.numel():
            _host(made).copy_(out)
        return made


def _start(x):
    return x.untyped_storage().data_ptr()


def _host(x):
    """The same memory as a tensor of the CPU."""
    storage = x.untyped_storage()
    if not x.numel() or not storage.nbytes():
        return torch.empty(x.shape, dtype=x.dtype, device="cpu")
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=x.dtype, count=storage.nbytes() // x.element_size())
    return flat.as_strided(x.shape, x.stride(), x.storage_offset())


# ---- torch.cuda ----


class _Memory:
    """PyTorch's pool, as far as gtopk asks for it; it counts."""

    def __init__(self, control):
        self.control = control
        self.sizes = {}

    def allocated(self, device=None):
        return sum(self.sizes.values())

    def allocate(self, size, device=None, stream=None):
        if _Faults.memory:
            raise torch.OutOfMemoryError("CUDA out of memory (as a test wants it)")
        index = torch.device(device).index if not isinstance(device, int) else device
        address = self.control.allocate(index, size)
        self.sizes[address] = size
        return address

    def release(self, address):
        del self.sizes[address]
        self.control.release(address)


class _Faults:
    memory = False


class _Stream:
    """torch.cuda.Stream"""

    def __init__(self, device, number):
        self.device, self.cuda_stream = torch.device("cuda", device), number

    def synchronize(self):
        _installed.pass_(self.device.index, self.cuda_stream)

    def wait_stream(self, other):
        other.synchronize()


def _patch(part, memory):
    cuda = torch.cuda

    def index_of(device):
        if device is None:
            return part.torch_cuda_device()
        if isinstance(device, int):
            return device
        index = torch.device(device).index
        return part.torch_cuda_device() if index is None else index

    @contextlib.contextmanager
    def device(which):
        before = part.torch_cuda_device()
        part.torch_cuda_set_device(index_of(which))
        try:
            yield
        finally:
            part.torch_cuda_set_device(before)

    @contextlib.contextmanager
    def stream(which):
        index = which.device.index
        before = part.torch_cuda_stream(index)
        part.torch_cuda_set_stream(index, which.cuda_stream)
        try:
            yield
        finally:
            part.torch_cuda_set_stream(index, before)

    def new_stream(device=None):
        new_stream.count += 1
        return _Stream(index_of(device), 4096 * new_stream.count)

    new_stream.count = 0

    def current_stream(which=None):
        return _Stream(index_of(which), part.torch_cuda_stream(index_of(which)))

    for name, value in {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 2,
        "current_device": part.torch_cuda_device,
        "set_device": lambda which: part.torch_cuda_set_device(index_of(which)),
        "device": device,
        "stream": stream,
        "Stream": new_stream,
        "current_stream": current_stream,
        "default_stream": lambda which=None: _Stream(index_of(which), 0),
        "synchronize": lambda which=None: current_stream(which).synchronize(),
        "caching_allocator_alloc": memory.allocate,
        "caching_allocator_delete": memory.release,
        "memory_allocated": memory.allocated,
    }.items():
        _replace(cuda, name, value)
    # For deepcopy and torch.save: this PyTorch makes no storage on GPUs by itself.
    ours = torch.UntypedStorage
    clone, cpu = ours.clone, ours.cpu
    _replace(ours, "clone", lambda storage: (_bytes_of if storage.is_cuda else clone)(storage))
    _replace(ours, "cpu", lambda storage: _bytes_of(storage, "cpu") if storage.is_cuda else cpu(storage))


def _replace(where, name, value):
    _undo.append(functools.partial(setattr, where, name, getattr(where, name)))
    setattr(where, name, value)


def _bytes_of(storage, device=None):
    """A copy."""
    mine = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))
    return mine.to(device or storage.device, copy=True).untyped_storage()


@contextlib.contextmanager
def without_memory():
    """PyTorch's pool is empty."""
    _Faults.memory = True
    try:
        yield
    finally:
        _Faults.memory = False
