"""A GPU that records: streams, memory pools and CUDA graphs as CuPy has them, over the simulator, for tests of `minisd.ops.cuda.graph`.

    with recorder() as gpu:                     # `import cupy` gives a stand-in, launchers run in the simulator
        x = gpu.put(numpy_array)
        graph = Graph(f, [x])

Like a GPU: while a stream is recorded nothing is computed, what is made holds NaN, and looking at a number or bringing one from the host
raises. What is recorded knows addresses, not arrays: it keeps no array alive, and a replay reads and writes whatever lies there then. Memory
that an array gives back goes to the pool it came from, full of NaN, and to the next array of that pool that asks for as much.
"""

import ctypes
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np

from minisd.ops.cuda import cublas
from minisd.ops.cuda.device import on_device
from tests.cudasim.simulator import FORWARD, Simulator, function, run_text


class Lease(np.ndarray):
    """Bytes that an array and its views hold; with the last of them they go back to their pool."""

    pool = None

    def __del__(self):
        if self.pool is not None:
            self.pool.free.append(self.base)


class Pool:
    """`cupy.cuda.MemoryPool`"""

    def __init__(self):
        self.free = []

    def malloc(self, nbytes: int) -> Lease:
        fitting = next((i for i, raw in enumerate(self.free) if raw.nbytes == nbytes), None)
        raw = np.empty(nbytes, np.uint8) if fitting is None else self.free.pop(fitting)
        raw[:] = 0xFF
        lease = raw.view(Lease)
        lease.pool = self
        return lease


class State:
    """Of the one GPU there is: nodes is what was recorded so far, None while nothing is recorded; uploads counts arrays from the host."""

    nodes, malloc, streams, uploads = None, None, [], 0


def allocate(shape, dtype) -> "ndarray":
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    nbytes = max(16, int(np.prod(shape)) * dtype.itemsize)
    return np.ndarray.__new__(ndarray, shape, dtype, buffer=State.malloc(nbytes))


def refuse(what: str):
    if State.nodes is not None:
        raise RuntimeError(f"the current stream is capturing, so {what} are disallowed")


def raw(x):
    """The same place in memory as a plain array, which holds no lease: an address."""
    if not isinstance(x, ndarray):
        if isinstance(x, np.ndarray) and x.ndim:
            raise TypeError(f"Unsupported type {type(x)}")
        return type(x)(map(raw, x)) if type(x) in (list, tuple) else x
    lease = x.base
    while not isinstance(lease, Lease):
        lease = lease.base
    return np.ndarray(x.shape, x.dtype, buffer=lease.base, offset=x.ctypes.data - lease.ctypes.data, strides=x.strides)


def compute(f, args, options, out=None):
    """f(*args), or a node that computes it when the graph is launched; a view stays a view."""
    given = raw(args)
    with np.errstate(all="ignore"):
        y = f(*given, **options)
    if isinstance(y, (list, tuple)):
        raise TypeError("the stand-in records functions of one result")
    y = np.asarray(y)
    if out is None and any(np.shares_memory(y, a) for a in given if isinstance(a, np.ndarray) and y.size):
        x = next(x for x in args if isinstance(x, ndarray))
        lease = x.base
        return np.ndarray.__new__(ndarray, y.shape, y.dtype, buffer=lease, offset=y.ctypes.data - lease.ctypes.data, strides=y.strides)
    out = allocate(y.shape, y.dtype) if out is None else out
    target = raw(out)

    def node():
        with np.errstate(all="ignore"):
            target[...] = f(*given, **options)

    if State.nodes is None:
        target[...] = y
    else:
        State.nodes.append(node)
    return out


class ndarray(np.ndarray):
    """`cupy.ndarray`: what makes a new array out of it goes through `compute`."""

    device = SimpleNamespace(id=0)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if ufunc is np.matmul and State.nodes is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")  # CuPy 14.2, issue 6290
        f = matmul if ufunc is np.matmul else getattr(ufunc, method)
        return compute(f, inputs, options, out[0] if out else None)

    def __array_function__(self, f, types, args, options):
        return compute(f, args, options)

    def astype(self, dtype, order="K", copy=True):
        return self if not copy and self.dtype == dtype else compute(lambda a: a.astype(dtype), (self,), {})

    def copy(self, order="C"):
        return compute(lambda a: a.copy(), (self,), {})

    def repeat(self, *args, **options):
        return compute(lambda a: a.repeat(*args, **options), (self,), {})

    def reshape(self, *shape):
        return compute(lambda a: a.reshape(*shape), (self,), {})

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        return np.ndarray.__getitem__(self, index if Ellipsis in index else (*index, ...))  # a number stays an array, without axes

    def __setitem__(self, index, value):
        target, value = raw(self[index]), raw(value)
        if State.nodes is None:
            target[...] = value
        else:
            State.nodes.append(lambda: target.__setitem__(..., value))

    def get(self):
        refuse("D2H transfers")
        return raw(self).copy()

    def _number(self, kind):
        refuse("synchronous API calls")
        return kind(raw(self)[()])

    def __float__(self):
        return self._number(float)

    def __int__(self):
        return self._number(int)

    def __bool__(self):
        return self._number(bool)


def matmul(a, b):
    """float16 products are summed in float32, as by cuBLAS."""
    return (a.astype("float32") @ b.astype("float32")).astype("float16") if a.dtype == np.float16 else a @ b


def put(x, dtype=None) -> ndarray:
    """`cupy.asarray`: an array on the GPU, in C order."""
    if isinstance(x, ndarray):
        return x if dtype is None else x.astype(dtype, copy=False)
    refuse("H2D transfers")
    State.uploads += 1
    y = allocate(np.shape(x), np.asarray(x).dtype if dtype is None else dtype)
    raw(y)[...] = x
    return y


def contiguous(x) -> ndarray:
    return x if x.flags.c_contiguous else x.copy()


class Stream:
    """`cupy.cuda.Stream`"""

    def __init__(self, non_blocking=False):
        self.non_blocking, self.ptr = non_blocking, id(self)

    def __enter__(self):
        State.streams.append(self)
        return self

    def __exit__(self, *_):
        State.streams.pop()

    def synchronize(self):
        refuse("synchronous API calls")

    def begin_capture(self):
        assert self.non_blocking and State.streams[-1:] == [self] and State.nodes is None
        State.nodes = []

    def end_capture(self):
        assert State.streams[-1:] == [self] and State.nodes is not None
        nodes, State.nodes = State.nodes, None
        return GraphOfNodes(nodes)


class GraphOfNodes:
    """`cupy.cuda.Graph`. launches: how often it ran"""

    def __init__(self, nodes):
        self.nodes, self.launches = nodes, 0

    def launch(self, stream=None):
        self.launches += 1
        for node in self.nodes:
            node()


@contextmanager
def using_allocator(malloc):
    kept, State.malloc = State.malloc, malloc
    try:
        yield
    finally:
        State.malloc = kept


class Recorder(Simulator):
    """The simulator for these arrays. launches: the kernels that Python launched, which are none in a replay."""

    array_type = ndarray

    def __init__(self, cupy):
        super().__init__(ways=[FORWARD])
        self.cupy, self.put, self.cublas = cupy, put, Cublas()

    def empty(self, shape, dtype):
        return allocate(shape, dtype)

    def contiguous(self, x):
        return contiguous(x)

    def run(self, instance, grid, block, arguments, shared):
        self.launches.append(instance.expression)
        f, values = function(instance), [raw(a) for a in arguments]

        def node():
            run_text(f, instance, grid, block, values, shared, self.ways)

        State.nodes.append(node) if State.nodes is not None else node()


class Cublas:
    """The functions of libcublas that `minisd.ops.cuda.cublas` calls, on addresses, in cuBLAS's order by columns. calls: their names."""

    def __init__(self):
        self.calls, self.workspaces = [], {}

    def __getattr__(self, name):
        if name not in ("cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasDestroy_v2"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name, *(getattr(a, "value", None) for a in args))) or 0

    def cublasGemmEx(self, handle, op_a, op_b, m, n, k, one, a, a_type, lda, b, b_type, ldb, zero, c, c_type, ldc, compute_type, algorithm):
        self.calls.append(("cublasGemmEx", handle.value))
        assert (a_type, b_type, c_type, compute_type, algorithm, op_b) == (2, 2, 2, 68, -1, 0) and (one._obj.value, zero._obj.value) == (1.0, 0.0)

        def by_columns(pointer, rows, columns, leading):
            """A [rows, columns] matrix whose columns lie `leading` numbers apart."""
            memory = (ctypes.c_uint16 * (leading * columns)).from_address(pointer.value)
            return np.frombuffer(memory, np.float16).reshape(columns, leading)[:, :rows].T

        A, B, C = by_columns(a, *((k, m) if op_a else (m, k)), lda), by_columns(b, k, n, ldb), by_columns(c, m, n, ldc)

        def node():
            x, w = B.T.astype("float32"), (A if op_a == 0 else A.T).astype("float32")
            C[...] = (x @ w.T).T

        State.nodes.append(node) if State.nodes is not None else node()
        return 0


class CuPy(ModuleType):
    """The module: everything that is not listed is NumPy's function of the same name."""

    ndarray, asarray, array, ascontiguousarray = ndarray, staticmethod(put), staticmethod(put), staticmethod(contiguous)

    def __getattr__(self, name):
        f = getattr(np, name)
        return (lambda *args, **options: compute(f, args, options)) if callable(f) and not isinstance(f, type) else f


class Device:
    """`cupy.cuda.Device`"""

    def __init__(self, id=0):
        self.id = id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@contextmanager
def recorder():
    """Inside the block there is one GPU, and nothing on it."""
    cupy, kept = CuPy("cupy"), sys.modules.get("cupy")
    cupy.cuda = SimpleNamespace(
        MemoryPool=Pool, Stream=Stream, using_allocator=using_allocator, get_current_stream=lambda: State.streams[-1] if State.streams else Stream(),
        Device=Device, memory=SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {})),
    )  # fmt: skip
    State.nodes, State.streams, State.malloc, State.uploads = None, [], Pool().malloc, 0
    sys.modules["cupy"] = cupy
    try:
        gpu = Recorder(cupy)
        with on_device(gpu), mock.patch.object(cublas, "library", lambda: gpu.cublas):
            yield gpu
    finally:
        del sys.modules["cupy"]
        if kept is not None:
            sys.modules["cupy"] = kept
