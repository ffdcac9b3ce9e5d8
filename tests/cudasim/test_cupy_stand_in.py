"""The stand-in for CuPy is as strict as CuPy, and offers nothing that CuPy has not."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from minisd.backend import array_module
from minisd.ops.cuda.device import device
from tests.cudasim.cupy_stand_in import reference_gpu, stand_in

HOST = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.fixture
def cupy():
    with stand_in(count=2) as module:
        yield module


def test_it_is_the_module_cupy_and_ends_with_its_block():
    before = sys.modules.get("cupy")
    with stand_in() as module:
        import cupy

        assert cupy is module and array_module(cupy.zeros(2)) is cupy
    assert sys.modules.get("cupy") is before


MIXED = {
    "operator": lambda x, h: x + h,
    "reflected": lambda x, h: h + x,
    "in place": lambda x, h: x.__iadd__(h),
    "matmul": lambda x, h: x @ h.T,
    "ufunc": lambda x, h: np.multiply(h, x),
    "function": lambda x, h: np.concatenate((x, h)),
    "module function": lambda x, h: sys.modules["cupy"].concatenate((x, h)),
    "assignment": lambda x, h: x.__setitem__(0, h[0]),
    "asarray": lambda x, h: np.asarray(x),
    "array": lambda x, h: np.array([x, x]),
}


@pytest.mark.parametrize("how", MIXED)
def test_nothing_mixes_with_numpy_silently(cupy, how):
    with pytest.raises(TypeError):
        MIXED[how](cupy.asarray(HOST), HOST)


def test_assigning_to_a_numpy_array_is_refused(cupy):
    with pytest.raises(TypeError):
        HOST.copy()[...] = cupy.asarray(HOST)


def test_numbers_are_welcome_and_come_back_as_arrays(cupy):
    x = cupy.asarray(HOST)
    y = np.float32(2) * x + 1
    assert isinstance(y, cupy.ndarray) and y.dtype == np.float32 and y.get().tolist() == [[1, 3, 5], [7, 9, 11]]
    assert isinstance(x.max(), cupy.ndarray) and x.max().shape == () and float(x.max()) == 5.0 and bool((x >= 0).all())
    assert isinstance(np.concatenate((x, x)), cupy.ndarray), "NumPy's functions hand over to CuPy's"
    x[0] = 7
    assert x[:, [0, 2]].get().tolist() == [[7, 7], [3, 5]] and len(x) == 2 and HOST[0, 0] == 0


def test_a_copy_from_the_host_is_c_contiguous(cupy):
    """As in CuPy, whatever the order was: whoever wants another has to say so."""
    assert cupy.asarray(HOST.T).flags.c_contiguous and not cupy.asarray(HOST).T.flags.c_contiguous


def test_products_of_float16_are_summed_in_float32(cupy):
    x = np.full((1, 4096), 0.1, "float16")
    exact = float((x.astype("float64") ** 2).sum())
    assert abs(float((cupy.asarray(x) @ cupy.asarray(x).T)[0, 0]) / exact - 1) <= 2**-11


def test_an_array_of_another_device_is_refused(cupy):
    with cupy.cuda.Device(1):
        x = cupy.zeros(3)
        assert (x + 1).device == cupy.cuda.Device(1)
    with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
        x + 1
    assert cupy.asarray(x).device.id == 0 and x[:2].device.id == 1


def test_what_is_not_listed_does_not_exist(cupy):
    with pytest.raises(AttributeError, match="not known to have 'argsort'"):
        cupy.zeros(3).argsort()
    with pytest.raises(AttributeError):
        cupy.vander
    with pytest.raises(TypeError):
        np.sort(cupy.zeros(3))


def test_the_reference_gpu_launches_nothing():
    with reference_gpu() as cupy, pytest.raises(AssertionError, match="was launched"):
        x = cupy.zeros((1, 4, 8), "float16")
        from minisd.ops.cuda.norm import group_norm_naive

        assert device().array_type is cupy.ndarray
        group_norm_naive(x, x[0, 0], x[0, 0], groups=2, eps=1e-5, act=None)


IN_CUPY = """
import warnings
warnings.simplefilter("ignore")
import cupy, cupyx.scipy.special
from tests.cudasim import cupy_stand_in as s
names = [("", cupy, n) for n in (*s.FUNCTIONS, *s.MAKERS, "ndarray", "get_default_memory_pool", "RawModule")]
names += [("ndarray.", cupy.ndarray, n) for n in (*s.METHODS, *s.VIEWS, *s.ATTRIBUTES, "get", "device", "data")]
names += [("ndarray.", cupy.ndarray, f"__{n}__") for n in (*s.BINARY, *s.UNARY)]
names += [("cuda.Device.", cupy.cuda.Device, n) for n in ("id", "compute_capability", "__enter__")]
names += [("cuda.runtime.", cupy.cuda.runtime, n) for n in
          ("getDeviceCount", "driverGetVersion", "runtimeGetVersion", "memGetInfo", "getDeviceProperties", "CUDARuntimeError")]
names += [("cuda.", cupy.cuda, "cublas")]
names += [("cuda.memory.", cupy.cuda.memory, "OutOfMemoryError"), ("cupyx.scipy.special.", cupyx.scipy.special, "erfc")]
print(*[where + n for where, owner, n in names if not hasattr(owner, n)])
print(issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError), issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError))
"""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed; it can be without a GPU: pip install -e '.[cuda13]'")
def test_cupy_has_every_name():
    done = subprocess.run([sys.executable, "-c", IN_CUPY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["", "True True"], "names that CuPy has not"
