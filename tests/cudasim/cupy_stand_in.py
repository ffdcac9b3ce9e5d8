"""A stand-in for CuPy where there is no GPU: arrays that meet no NumPy array, devices, memory, and CUDA's error codes.

    with stand_in() as cupy, on_device(StandInSimulator()):         # kernels run in the simulator
        pipe = StableDiffusionPipeline.from_pretrained(folder, device="cuda", dtype="float16")

    with reference_gpu(): …                                         # no kernels, no compiler: every op is the reference's
    with stand_in(driver=12040, runtime=13000, status=35): …        # a driver that is too old

As strict as CuPy: an operation with a NumPy array raises TypeError, so does a silent conversion; numbers come back as arrays without axes;
an operation on an array of another device than the current one raises ValueError. Only what is listed here exists: where CuPy is installed,
tests/cudasim/test_cupy_stand_in.py holds each name against the real one.
"""

import math
import operator
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np

from minisd import gpu, ops
from minisd.ops.cuda.device import on_device
from tests.cudasim.simulator import FORWARD, Simulator

FUNCTIONS = (  # computed by NumPy's function of the same name
    "abs", "arange", "arccos", "broadcast_to", "clip", "concatenate", "cos", "empty", "empty_like", "exp", "full", "isfinite", "multiply", "pad",
    "rint", "sin", "split", "sqrt", "stack", "triu", "where", "zeros",
)  # fmt: skip
MAKERS = ("array", "asarray", "ascontiguousarray")  # take NumPy arrays and lists too: the way to the device
METHODS = ("all", "any", "astype", "clip", "copy", "max", "mean", "min", "nonzero", "repeat", "std", "sum")
VIEWS = ("ravel", "reshape", "squeeze", "swapaxes", "transpose")
ATTRIBUTES = ("T", "dtype", "flags", "itemsize", "nbytes", "ndim", "shape", "size", "strides")
BINARY = ("add", "eq", "floordiv", "ge", "gt", "le", "lt", "matmul", "mod", "mul", "ne", "pow", "sub", "truediv")
UNARY = ("abs", "invert", "neg")
NO_REFLECTION = ("eq", "ge", "gt", "le", "lt", "ne")


class ndarray:
    """An array on a device: `cupy.ndarray`. The numbers are in `host`, where only this file and the simulator look for them."""

    def __init__(self, host: np.ndarray, device: int | None = None):
        self.host, self.device = host, Device(device)
        self.data = SimpleNamespace(ptr=host.ctypes.data // 16 * 16)  # the simulator copies to addresses of its own

    def __getattr__(self, name):
        if name in ATTRIBUTES:
            value = getattr(self.host, name)
            return ndarray(value, self.device.id) if isinstance(value, np.ndarray) else value
        if name in VIEWS:
            return lambda *args, **options: ndarray(getattr(self.host, name)(*args, **options), self.device.id)
        if name in METHODS:
            return lambda *args, **options: compute(getattr(np.ndarray, name), (self, *args), options)
        raise AttributeError(f"cupy.ndarray is not known to have {name!r}: add it to {__name__}, if it has")

    def get(self) -> np.ndarray:
        return np.array(self.host, order="C")

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or ufunc.__name__ not in FUNCTIONS:
            raise TypeError(f"numpy.{ufunc.__name__}.{method} of a CuPy array")
        return compute(ufunc, inputs, options)

    def __array_function__(self, function, types, args, options):
        if not all(t is ndarray for t in types) or function.__name__ not in FUNCTIONS:
            return NotImplemented
        return compute(function, args, options)

    def __getitem__(self, index):
        return ndarray(np.asarray(self.host[indices(index)]), self.device.id)

    def __setitem__(self, index, value):
        self.host[indices(index)] = operand(value)

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self.host)

    def __float__(self):
        return float(self.host)

    def __int__(self):
        return int(self.host)

    __hash__ = None


def _operators():
    """Every operator in its plain, reflected and in-place form."""

    def of(name):
        operation = matmul if name == "matmul" else getattr(operator, f"__{name}__")
        plain = lambda a, b: compute(operation, (a, b), {})  # noqa: E731
        return plain, lambda a, b: compute(operation, (b, a), {})

    for name in BINARY:
        plain, reflected = of(name)
        setattr(ndarray, f"__{name}__", plain)
        if name not in NO_REFLECTION:
            setattr(ndarray, f"__r{name}__", reflected)
            setattr(ndarray, f"__i{name}__", in_place(name))
    for name in UNARY:
        setattr(ndarray, f"__{name}__", lambda a, f=getattr(operator, f"__{name}__"): compute(f, (a,), {}))


def in_place(name: str):
    def run(a, b):
        getattr(operator, f"__i{name}__")(operand(a), operand(b))
        return a

    return run


def matmul(a, b):
    """float16 products are summed in float32, as cuBLAS does for CuPy."""
    if a.dtype == b.dtype == np.float16:
        return (a.astype("float32") @ b.astype("float32")).astype("float16")
    return a @ b


def operand(x):
    """What an operation computes with: the numbers of an array on the current device, or a number. NumPy arrays are refused, as by CuPy."""
    if isinstance(x, ndarray):
        if x.device.id != Device.current():
            raise ValueError(f"The device where the array resides ({x.device.id}) is different from the current device ({Device.current()})")
        return x.host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return type(x)(map(operand, x)) if type(x) in (list, tuple) else x


def indices(index):
    """Indices may be NumPy arrays of integers and lists too."""
    if isinstance(index, tuple):
        return tuple(map(indices, index))
    return index.host if isinstance(index, ndarray) else index


def compute(function, args, options):
    """A NumPy function on the numbers of the arrays; what comes out is an array on the current device, a number one without axes."""
    y = function(*map(operand, args), **{name: operand(value) for name, value in options.items()})
    if isinstance(y, (list, tuple)):
        return type(y)(ndarray(np.asarray(part)) for part in y)
    return ndarray(np.asarray(y))


def maker(name: str):
    def make(x, dtype=None):
        if isinstance(x, ndarray) and x.device.id == Device.current():
            host = getattr(np, name)(x.host, **({"dtype": dtype} if dtype else {}))
            return x if host is x.host else ndarray(host)
        return ndarray(np.array(x.host if isinstance(x, ndarray) else x, dtype=dtype, order="C"))  # a copy from elsewhere

    return make


_operators()


class Device:
    """`cupy.cuda.Device`: a context manager that makes it the current one."""

    entered = [0]
    facts: SimpleNamespace

    def __init__(self, device: int | None = None):
        self.id = self.current() if device is None else device

    @classmethod
    def current(cls) -> int:
        return cls.entered[-1]

    @property
    def compute_capability(self) -> str:
        return self.facts.capability

    def __enter__(self):
        self.entered.append(self.id)
        return self

    def __exit__(self, *_):
        self.entered.pop()

    def __eq__(self, other):
        return self.id == other.id


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int):
        self.status = status
        super().__init__(f"cudaError {status}")


class OutOfMemoryError(MemoryError):
    """`cupy.cuda.memory.OutOfMemoryError`"""


class StandInSimulator(Simulator):
    """The simulator for the stand-in's arrays. `copies`: shapes of what a launcher had to copy because it was not contiguous."""

    array_type = ndarray

    def __init__(self, ways=(FORWARD,)):
        super().__init__(ways)
        self.copies = []

    def empty(self, shape, dtype):
        return ndarray(super().empty(shape, dtype))

    def contiguous(self, x):
        if not x.flags.c_contiguous:
            self.copies.append(x.shape)
        return ndarray(super().contiguous(operand(x)))

    def run(self, instance, grid, block, arguments, shared):
        super().run(instance, grid, block, [operand(a) if isinstance(a, ndarray) else a for a in arguments], shared)


class NoKernels(StandInSimulator):
    """For tests of everything but the kernels: a launch is an error."""

    def run(self, instance, grid, block, arguments, shared):
        raise AssertionError(f"{instance.expression} was launched in a test without kernels")


FACTS = dict(  # of the machine: status is the CUDA error that counting GPUs ends with, pooled the bytes that the pool keeps
    count=1, status=0, driver=13000, runtime=13000, capability="90", name="NVIDIA Stand-in", free=16 << 30, total=24 << 30, pooled=0, cublas=True
)  # fmt: skip


class Cuda(SimpleNamespace):
    """`cupy.cuda`"""

    @property
    def cublas(self):
        if not Device.facts.cublas:
            raise ImportError('Failure finding "libcublasLt.so.13": No such file: libcublasLt.so.13\nand more')
        return ModuleType("cublas")


def module(facts: SimpleNamespace) -> ModuleType:
    """The module `cupy`."""
    Device.facts = facts

    def count():
        if facts.status:
            raise CUDARuntimeError(facts.status)
        return facts.count

    cupy = ModuleType("cupy")
    cupy.__version__, cupy.ndarray = "14.2.0", ndarray
    for name in FUNCTIONS:
        setattr(cupy, name, lambda *args, f=getattr(np, name), **options: compute(f, args, options))
    for name in MAKERS:
        setattr(cupy, name, maker(name))
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError, getDeviceCount=count, driverGetVersion=lambda: facts.driver, runtimeGetVersion=lambda: facts.runtime,
        memGetInfo=lambda: (facts.free, facts.total), getDeviceProperties=lambda index: {"name": facts.name.encode()},
    )  # fmt: skip
    cupy.cuda = Cuda(Device=Device, runtime=runtime, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError))
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: facts.pooled)
    return cupy


@contextmanager
def stand_in(**facts):
    """Inside the block `import cupy` gives the stand-in. facts: what FACTS says otherwise."""
    special = ModuleType("cupyx.scipy.special")
    special.erfc = lambda x: compute(np.frompyfunc(math.erfc, 1, 1), (x,), {}).astype("float64")
    facts = SimpleNamespace(**{**FACTS, **facts})
    fake = {"cupy": module(facts), "cupyx": ModuleType("cupyx"), "cupyx.scipy": ModuleType("cupyx.scipy"), "cupyx.scipy.special": special}
    kept = {key: sys.modules.get(key) for key in fake}
    sys.modules.update(fake)
    try:
        yield fake["cupy"]
    finally:
        for key, value in kept.items():
            if value is None:
                del sys.modules[key]
            else:
                sys.modules[key] = value


@contextmanager
def reference_gpu(**facts):
    """A GPU on which every op is the reference's: for tests of everything but the kernels, without a compiler."""
    reference = {op: "reference" for op, ladder in ops.RUNGS.items() if any(rung.owner == "cupy" for rung in ladder)}
    no_compiler = mock.patch.object(gpu, "check_libraries"), mock.patch.object(gpu.nvrtc, "version", lambda: "13.0")
    with stand_in(**facts) as cupy, on_device(NoKernels()), ops.using(**reference), no_compiler[0], no_compiler[1]:
        yield cupy
