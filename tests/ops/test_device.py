"""The typed launch: what it refuses, what it hands on, and how it speaks to CuPy (a stand-in here: there is no GPU)."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minisd.errors import ContractError, ResourceError
from minisd.ops.cuda import device as module
from minisd.ops.cuda.compile import Cubin, Resources
from minisd.ops.cuda.device import CuPyDevice, Device, device, on_device
from minisd.ops.cuda.norm import GROUP_NAIVE, group_norm_naive
from minisd.ops.cuda.tensor_map import TensorMap

INSTANCE = GROUP_NAIVE("half")
OPTIONAL = module.Parameter("b", np.dtype("float16"), pointer=True, const=True, optional=True)


class Recorder(Device):
    """A device that notes what it was asked to run."""

    array_type = np.ndarray

    def __init__(self):
        self.runs = []

    def empty(self, shape, dtype):
        return np.zeros(shape, dtype)

    def contiguous(self, x):
        return np.ascontiguousarray(x)

    def run(self, instance, grid, block, arguments, shared):
        self.runs.append((instance, grid, block, arguments, shared))


def arguments(**changes) -> list:
    """A right launch of the kernel, with some arguments replaced."""
    x = np.ones((2, 3, 8), "float16")
    right = dict(x=x, w=x[0, 0], b=x[0, 1], y=np.ones_like(x), S=3, C=8, G=2, eps=1e-5, use_silu=1)
    return list((right | changes).values())


def launch(args, grid=(2, 2), block=256, shared=0):
    recorder = Recorder()
    recorder.launch(INSTANCE, grid, block, *args, shared=shared)
    return recorder.runs


def test_a_right_launch_is_handed_on_with_numbers_of_the_right_type():
    ((instance, grid, block, bound, shared),) = launch(arguments(), shared=64)
    assert (instance, grid, block, shared) == (INSTANCE, (2, 2, 1), (256, 1, 1), 64)
    assert [type(a) for a in bound[4:]] == [np.int32, np.int32, np.int32, np.float32, np.int32]
    assert bound[0].dtype == np.float16


WRONG = {
    "dtype": (dict(w=np.ones(8, "float32")), "w is float32, the kernel reads float16"),
    "strided": (dict(x=np.ones((2, 3, 16), "float16")[..., ::2]), r"x \(2, 3, 8\) is not contiguous"),
    "list": (dict(b=[1.0] * 8), "b is a builtins.list, not a numpy array"),
    "none": (dict(w=None), "w is None"),
    "fraction": (dict(S=3.0), "S is 3.0, not an integer"),
    "large": (dict(C=2**31), "C = 2147483648 does not fit into 32 bits"),
    "text": (dict(eps="1e-5"), "eps is '1e-5', not a number"),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_wrong_argument_is_refused_by_name(name):
    changes, message = WRONG[name]
    with pytest.raises(ContractError, match=f"kernel group_norm_naive<half>: {message}"):
        launch(arguments(**changes))


def test_a_missing_argument():
    with pytest.raises(ContractError, match="8 arguments for"):
        launch(arguments()[:-1])


@pytest.mark.parametrize(
    "size, message",
    [
        (dict(block=1025), "a block of"), (dict(block=(33, 32)), "a block of"), (dict(block=(32, 0)), "a block of"),
        (dict(grid=(1, 65536)), "a grid of"), (dict(grid=-1), "a grid of"), (dict(shared=(99 << 10) + 1), "bytes of shared memory"),
    ],
)  # fmt: skip
def test_sizes_that_some_gpu_lacks_are_refused(size, message):
    with pytest.raises(ContractError, match=message):
        launch(arguments(), **size)


def test_a_gpu_with_more_shared_memory_gives_more():
    recorder = Recorder()
    recorder.capability = 90
    recorder.launch(INSTANCE, 1, 32, *arguments(), shared=227 << 10)
    with pytest.raises(ContractError, match="bytes of shared memory, of 232448"):
        recorder.launch(INSTANCE, 1, 32, *arguments(), shared=228 << 10)


MAPPED = module.Instance("toy.cu", "toy", (module.Parameter("x", np.dtype("float16"), False, True, False, tensor_map=True),))
X = np.ones((4, 64), "float16")


def test_a_tensor_map_is_handed_on():
    m = TensorMap(X, (4, 64), 128)
    assert module.bind(MAPPED, (m,), np.ndarray) == [m]


@pytest.mark.parametrize(
    "argument, message",
    [(X, "x is a numpy.ndarray, not a TensorMap"), (TensorMap(X.astype("float32"), (4, 32), 128), "x maps float32, the kernel reads float16"),
     (TensorMap([1], (4, 32), 128), "x maps a builtins array, not a numpy one"), (TensorMap(X, (4, 32), 128), r"x has a box \(4, 32\)")],
)  # fmt: skip
def test_a_wrong_map_is_refused_by_name(argument, message):
    with pytest.raises(ContractError, match=f"kernel toy: {message}"):
        module.bind(MAPPED, (argument,), np.ndarray)


def test_a_grid_is_a_whole_number_of_clusters():
    with pytest.raises(ContractError, match=r"a grid of \(3, 1, 1\) blocks for clusters of 2"):
        Recorder().launch(module.Instance("toy.cu", "toy", (), cluster=2), 3, 32)


def test_a_grid_of_no_blocks_is_nothing_to_do():
    assert launch(arguments(), grid=(0, 2)) == []


def test_null_only_where_the_kernel_allows_it():
    instance = module.Instance("toy.cu", "toy", (OPTIONAL,))
    assert module.bind(instance, (None,), np.ndarray) == [None]


def test_on_device_ends_with_its_block():
    recorder = Recorder()
    x = np.ones((1, 4, 8), "float16")
    with on_device(recorder):
        assert device() is recorder
        group_norm_naive(x, x[0, 0], x[0, 0], groups=2, eps=1e-5, act=None)
    assert len(recorder.runs) == 1
    with on_device(Recorder()):
        assert device() is not recorder


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """CuPyDevice on a stand-in for CuPy that notes what it is told."""
    calls, built = [], []

    class Function(SimpleNamespace):
        def __call__(self, *args, **kwargs):
            calls.append((args, kwargs))

    f = Function(max_dynamic_shared_size_bytes=48 << 10)
    cupy = SimpleNamespace(
        ndarray=np.ndarray, empty=np.empty, ascontiguousarray=np.ascontiguousarray,
        cuda=SimpleNamespace(Device=lambda: SimpleNamespace(id=0, compute_capability="90")),
        RawModule=lambda path: SimpleNamespace(get_function=lambda name: built.append((path, name)) or f),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(module, "build", lambda instance, arch: Cubin(Path(tmp_path, arch), "mangled", Resources(1, 0, 0, 0)))
    return SimpleNamespace(device=CuPyDevice(), calls=calls, built=built, function=f)


def test_cupy_gets_the_cubin_of_its_gpu_once(gpu):
    for _ in range(2):
        gpu.device.launch(INSTANCE, 2, 256, *arguments())
    assert [(Path(path).name, name) for path, name in gpu.built] == [("sm_90", "mangled")]
    (grid, block, args), keywords = gpu.calls[0]
    assert (grid, block, keywords) == ((2, 1, 1), (256, 1, 1), {"shared_mem": 0})
    assert len(args) == 9 and type(args[-2]) is np.float32


def test_cupy_gets_the_drivers_struct_for_a_map(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "encoded", lambda *args: asked.append(args) or "struct")
    array = SimpleNamespace(data=SimpleNamespace(ptr=4096), shape=(4, 64), strides=(128, 2))
    gpu.device.run(MAPPED, (1, 1, 1), (1, 1, 1), [TensorMap(array, (4, 64), 128)], 0)
    assert asked == [(4096, (4, 64), (128, 2), (4, 64), 128)] and gpu.calls[0][0][2] == ("struct",) and gpu.device.capability == 90


def test_a_gpu_that_is_too_old_is_named(gpu):
    gpu.device.cupy.cuda.Device = lambda: SimpleNamespace(id=0, compute_capability="75")
    with pytest.raises(ResourceError, match="this GPU has compute capability 75"):
        gpu.device.launch(INSTANCE, 2, 256, *arguments())


def test_much_shared_memory_is_asked_for(gpu):
    gpu.device.launch(INSTANCE, 2, 256, *arguments(), shared=1024)
    assert gpu.function.max_dynamic_shared_size_bytes == 48 << 10
    gpu.device.launch(INSTANCE, 2, 256, *arguments(), shared=64 << 10)
    assert gpu.function.max_dynamic_shared_size_bytes == 64 << 10


@pytest.mark.parametrize("address, copies", [(4096, 0), (4098, 1)])
def test_a_view_at_an_odd_address_is_copied(gpu, address, copies):
    """Vector loads need addresses that are multiples of 16, which x[1:] may not have."""
    made = []
    view = SimpleNamespace(data=SimpleNamespace(ptr=address), shape=(3,), copy=lambda: made.append("copy") or "copied")
    view.reshape = lambda shape: view
    gpu.device.cupy.ascontiguousarray = lambda x: x
    result = gpu.device.contiguous(view)
    assert len(made) == copies and result == ("copied" if copies else view)


def test_null_is_a_zero_for_cupy(gpu):
    gpu.device.run(INSTANCE, (1, 1, 1), (1, 1, 1), [None], 0)
    (_, _, (null,)), _ = gpu.calls[0]
    assert null == 0 and null.dtype == np.uintp


# ----- the product of halves -----------------------------------------------------------------------------------------------------


class Resident(np.ndarray):
    """An array that has its address where CuPy's have it."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


def resident(a):
    return np.ascontiguousarray(a).view(Resident)


def columns(address, dtype, rows, cols, leading, stride, count):
    """[count, rows, cols]: matrices that are stored column after column, as cuBLAS reads them."""
    size = np.dtype(dtype).itemsize
    flat = np.frombuffer((ctypes.c_uint8 * (size * stride * count)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(flat, (count, rows, cols), (size * stride, size, size * leading), writeable=True)


@pytest.fixture
def cublas(gpu):
    """What cublasGemmStridedBatchedEx is documented to do, on NumPy's memory."""
    types, calls = {2: "float16", 0: "float32"}, []

    def gemm(handle, transa, transb, m, n, k, alpha, a, a_type, lda, a_step, b, b_type, ldb, b_step,
             beta, c, c_type, ldc, c_step, count, compute, algo):  # fmt: skip
        assert (handle, transb, compute, algo) == ("handle", 0, 68, -1)
        for address, value in ((alpha, 1.0), (beta, 0.0)):
            assert ctypes.c_float.from_address(address).value == value
        rows, cols = (k, m) if transa else (m, k)
        left = columns(a, types[a_type], rows, cols, lda, a_step, count).astype("float64")
        right = columns(b, types[b_type], k, n, ldb, b_step, count).astype("float64")
        columns(c, types[c_type], m, n, ldc, c_step, count)[...] = (left.swapaxes(1, 2) if transa else left) @ right
        calls.append((types[a_type], types[b_type], types[c_type]))

    gpu.device.cupy.cuda.cublas = SimpleNamespace(
        gemmStridedBatchedEx=gemm, CUBLAS_OP_N=0, CUBLAS_OP_T=1, CUBLAS_COMPUTE_32F=68, CUBLAS_GEMM_DEFAULT=-1)  # fmt: skip
    gpu.device.cupy.cuda.runtime = SimpleNamespace(CUDA_R_16F=2, CUDA_R_32F=0)
    gpu.device.cupy.cuda.get_cublas_handle = lambda: "handle"
    gpu.device.cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(Resident)
    gpu.device.cupy.ascontiguousarray = resident
    return calls


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("P, M, K, N", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 8, 4, 2)])
def test_a_product_of_halves_is_cublas_with_float32_sums(gpu, cublas, P, M, K, N, transposed, dtype):
    random = np.random.RandomState(0)
    a, b = random.randn(P, M + 2, K)[:, 1:-1].astype("float16"), random.randn(P, *((N, K) if transposed else (K, N))).astype("float16")
    y = gpu.device.product(resident(a), resident(b), dtype, transposed=transposed)
    assert y.dtype == dtype and cublas == [("float16", "float16", dtype)]
    assert np.allclose(y, Device.product(gpu.device, a, b, dtype, transposed=transposed), rtol=1e-3)


def test_a_product_of_floats_is_cupys_own(gpu, cublas):
    a = np.arange(12, dtype="float32").reshape(1, 3, 4)
    y = gpu.device.product(a, a, "float16", transposed=True)
    assert y.dtype == np.float16 and (y == a @ a.swapaxes(1, 2)).all() and cublas == []


def test_a_product_without_numbers_asks_nobody(gpu, cublas):
    empty = resident(np.zeros((0, 3, 4), "float16"))
    assert gpu.device.product(empty, empty, "float32", transposed=True).shape == (0, 3, 3) and cublas == []
