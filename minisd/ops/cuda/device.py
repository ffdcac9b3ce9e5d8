"""What a launcher needs of a device, and the typed launch: nobody behind it looks at the arguments again.

Launchers ask `device()` and know nothing more. It is the GPU through CuPy, or, in the tests, a simulator that runs the same kernels on
NumPy arrays (`with on_device(simulator): …`).
"""

import math
import operator
from abc import ABC, abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import numpy as np

from ...errors import ContractError, ResourceError
from .compile import build
from .kernel import Instance, Parameter
from .tensor_map import TensorMap, encoded

MAX_THREADS = 1024
MAX_SHARED = 99 << 10  # bytes that a block may have on every architecture from sm_80 on
SHARED = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # by compute capability, where it is more
DEFAULT_SHARED = 48 << 10  # more than this has to be asked for
ALIGNMENT = 16  # bytes of a vector load; the pool's own arrays have 512, a view of some rows may have 2
OLDEST = 80  # compute capability
MAX_GRID = (2**31 - 1, 65535, 65535)


class Device(ABC):
    """Arrays of one owner, and kernels that run on them."""

    array_type: type
    multiprocessors: int = 132  # an H100's, where no GPU says how many; launchers cut the work so that all of them have some
    capability: int = 0  # 90 for 9.0; 0: of no GPU in particular, with what they all have

    @abstractmethod
    def empty(self, shape, dtype):
        """A new array, not filled."""

    @abstractmethod
    def contiguous(self, x):
        """x in C order at an address that is a multiple of ALIGNMENT: itself if it is, else a copy."""

    def product(self, a, b, dtype, *, transposed=False):
        """a b, or a bᵀ, summed in float32.        a [P, M, K], b [P, K, N] or transposed [P, N, K] -> [P, M, N] in `dtype`"""
        a, b = a.astype("float32", copy=False), b.astype("float32", copy=False)
        return (a @ (b.swapaxes(1, 2) if transposed else b)).astype(dtype, copy=False)

    @abstractmethod
    def run(self, instance: Instance, grid, block, arguments: list, shared: int):
        """Runs a kernel on arguments that `bind` has checked."""

    def launch(self, instance: Instance, grid, block, *args, shared: int = 0):
        """kernel<<<grid, block, shared>>>(args…): grid and block a number or up to three, shared bytes of dynamic shared memory."""
        grid, block = three(grid), three(block)
        arguments = bind(instance, args, self.array_type)
        _expect(all(d > 0 for d in block) and math.prod(block) <= MAX_THREADS, instance, f"a block of {block} threads")
        _expect(all(0 <= d <= limit for d, limit in zip(grid, MAX_GRID)), instance, f"a grid of {grid} blocks")
        _expect(grid[0] % instance.cluster == 0, instance, f"a grid of {grid} blocks for clusters of {instance.cluster}")
        limit = SHARED.get(self.capability, MAX_SHARED)
        _expect(0 <= shared <= limit, instance, f"{shared} bytes of shared memory, of {limit}")
        if math.prod(grid):  # an empty array is nothing to do, not an error
            self.run(instance, grid, block, arguments, shared)


def three(size) -> tuple[int, int, int]:
    """A number, or a tuple of up to three, as (x, y, z)."""
    numbers = size if isinstance(size, tuple) else (size,)
    return tuple(operator.index(n) for n in (*numbers, 1, 1)[:3])


def bind(instance: Instance, args: tuple, array_type: type) -> list:
    """The arguments of a launch as the kernel wants them: arrays of `array_type` and tensor maps of them untouched, numbers as NumPy
    scalars, None for null."""
    wanted = instance.parameters
    _expect(len(args) == len(wanted), instance, f"{len(args)} arguments for ({', '.join(p.name for p in wanted)})")
    return [_map(instance, p, a, array_type) if p.tensor_map else _array(instance, p, a, array_type) if p.pointer else _number(instance, p, a)
            for p, a in zip(wanted, args)]  # fmt: skip


def _array(instance: Instance, p: Parameter, a, array_type: type):
    if a is None:
        _expect(p.optional, instance, f"{p.name} is None")
        return None
    _expect(isinstance(a, array_type), instance, f"{p.name} is a {type(a).__module__}.{type(a).__name__}, not a {array_type.__module__} array")
    _expect(a.dtype == p.dtype, instance, f"{p.name} is {a.dtype}, the kernel reads {p.dtype}")
    _expect(a.flags.c_contiguous, instance, f"{p.name} {a.shape} is not contiguous")
    return a


def _map(instance: Instance, p: Parameter, a, array_type: type):
    _expect(isinstance(a, TensorMap), instance, f"{p.name} is a {type(a).__module__}.{type(a).__name__}, not a TensorMap")
    _expect(isinstance(a.array, array_type), instance, f"{p.name} maps a {type(a.array).__module__} array, not a {array_type.__module__} one")
    _expect(a.array.dtype == p.dtype, instance, f"{p.name} maps {a.array.dtype}, the kernel reads {p.dtype}")
    problem = a.problem()
    _expect(problem is None, instance, f"{p.name} {problem}")
    return a


def _number(instance: Instance, p: Parameter, a):
    if p.dtype.kind == "i":
        _expect(isinstance(a, (int, np.integer)), instance, f"{p.name} is {a!r}, not an integer")
        _expect(-(2**31) <= a < 2**31, instance, f"{p.name} = {a} does not fit into 32 bits")
    else:
        _expect(isinstance(a, (int, float, np.number)), instance, f"{p.name} is {a!r}, not a number")
    return p.dtype.type(a)


def _expect(condition, instance: Instance, problem: str):
    if not condition:
        raise ContractError(f"kernel {instance.expression}: {problem}", f"its text is {instance.file}", "correct the launcher")


class CuPyDevice(Device):
    """The GPU that CuPy has selected. Kernels run on CuPy's current stream."""

    def __init__(self):
        import cupy

        self.cupy = cupy
        self.array_type = cupy.ndarray
        self.functions = {}  # (instance, architecture): the loaded kernel
        self.processors = {}  # of each GPU: asking the driver for it takes longer than a launch

    @property
    def multiprocessors(self):
        gpu = self.cupy.cuda.Device()
        if gpu.id not in self.processors:
            self.processors[gpu.id] = gpu.attributes["MultiProcessorCount"]
        return self.processors[gpu.id]

    @property
    def capability(self) -> int:
        return int(self.cupy.cuda.Device().compute_capability)

    def empty(self, shape, dtype):
        return self.cupy.empty(shape, dtype)

    def contiguous(self, x):
        x = self.cupy.ascontiguousarray(x).reshape(x.shape)  # which makes [1] of a number without axes
        return x if x.data.ptr % ALIGNMENT == 0 else x.copy()

    def product(self, a, b, dtype, *, transposed=False):
        """Half operands go to the tensor cores as they are: CuPy's @ would narrow the result, or widen the operands."""
        if a.dtype != np.float16 or b.dtype != np.float16:
            return super().product(a, b, dtype, transposed=transposed)
        cuda, a, b = self.cupy.cuda, self.contiguous(a), self.contiguous(b)
        (P, M, K), N = a.shape, b.shape[1 if transposed else 2]
        y = self.empty((P, M, N), dtype)
        if not y.size:
            return y
        one, zero = np.ones(1, "float32"), np.zeros(1, "float32")
        half, result = cuda.runtime.CUDA_R_16F, cuda.runtime.CUDA_R_16F if y.dtype == np.float16 else cuda.runtime.CUDA_R_32F
        cuda.cublas.gemmStridedBatchedEx(  # cuBLAS counts down the columns: it sees every matrix transposed, and is asked for yᵀ = bᵀ aᵀ
            cuda.get_cublas_handle(), cuda.cublas.CUBLAS_OP_T if transposed else cuda.cublas.CUBLAS_OP_N, cuda.cublas.CUBLAS_OP_N, N, M, K,
            one.ctypes.data, b.data.ptr, half, K if transposed else N, K * N, a.data.ptr, half, K, M * K,
            zero.ctypes.data, y.data.ptr, result, N, M * N, P, cuda.cublas.CUBLAS_COMPUTE_32F, cuda.cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
        return y

    def run(self, instance, grid, block, arguments, shared):
        self.function(instance, shared)(grid, block, tuple(map(_for_cupy, arguments)), shared_mem=shared)

    def function(self, instance: Instance, shared: int):
        """The kernel, compiled and loaded at its first use on this kind of GPU."""
        gpu = self.cupy.cuda.Device()
        key = (instance, gpu.id)
        if key not in self.functions:
            if int(gpu.compute_capability) < OLDEST:
                what = f"this GPU has compute capability {gpu.compute_capability}"
                raise ResourceError(what, f"the kernels use instructions of {OLDEST} (RTX 30, A100) and newer", "run on the CPU")
            cubin = build(instance, f"sm_{gpu.compute_capability}")
            self.functions[key] = self.cupy.RawModule(path=str(cubin.path)).get_function(cubin.name)
        f = self.functions[key]
        if shared > DEFAULT_SHARED and f.max_dynamic_shared_size_bytes < shared:
            f.max_dynamic_shared_size_bytes = shared
        return f


def _for_cupy(a):
    if isinstance(a, TensorMap):
        return encoded(a.array.data.ptr, a.array.shape, a.array.strides, a.box, a.swizzle)
    return np.uintp(0) if a is None else a


_DEVICE: ContextVar[Device | None] = ContextVar("minisd_cuda_device", default=None)


@cache
def _gpu() -> CuPyDevice:
    return CuPyDevice()


def device() -> Device:
    """Where launchers run: the GPU, unless `on_device` says otherwise."""
    return _DEVICE.get() or _gpu()


@contextmanager
def on_device(other: Device):
    """Inside the block launchers run there."""
    token = _DEVICE.set(other)
    try:
        yield
    finally:
        _DEVICE.reset(token)
