"""Who owns an array, with a stand-in for CuPy: the rule has to be checked on machines without a GPU."""

import sys
from types import ModuleType

import numpy as np
import pytest

from minisd.backend import array_module, beside, device_of, host_dtype, like, to_device, to_nchw, to_nhwc, to_numpy
from minisd.errors import ContractError
from tests.cudasim.cupy_stand_in import stand_in


class DeviceArray:
    """What the border needs of a CuPy array: its type, and `get()`."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def get(self):
        return self.values.copy()


@pytest.fixture
def cupy(monkeypatch):
    module = ModuleType("cupy")
    module.ndarray = DeviceArray
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_numpy_is_the_owner_of_everything_without_cupy(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert array_module(np.zeros(2), None, np.float32(1)) is np
    assert array_module() is np and array_module(None) is np
    assert "cupy" not in sys.modules, "asking must not import it"


def test_the_owner_is_found_behind_none(cupy):
    assert array_module(None, DeviceArray([1.0]), None) is cupy
    assert array_module(np.zeros(1), None) is np


def test_mixed_owners_are_refused_by_name(cupy):
    host, device = np.zeros(1), DeviceArray([1.0])
    with pytest.raises(ContractError, match="argument 1 belongs to cupy, the first argument to numpy") as caught:
        array_module(host, device)
    assert "to_numpy" in caught.value.fix
    with pytest.raises(ContractError, match="encoder_hidden_states belongs to numpy, the first argument to cupy"):
        array_module(device, host, names=("sample", "encoder_hidden_states"))


def test_mixed_owners_are_named_rightly_behind_none(cupy):
    """An absent bias must not shift the names: None is skipped as an owner, not as an argument."""
    with pytest.raises(ContractError, match="mask belongs to cupy"):
        array_module(np.zeros(1), None, DeviceArray([1.0]), names=("x", "b", "mask"))


def test_to_numpy():
    x = np.zeros(3)
    assert to_numpy(x) is x
    moved = to_numpy(DeviceArray([1.0, 2.0]))
    assert type(moved) is np.ndarray and moved.tolist() == [1.0, 2.0]
    assert to_numpy([1, 2]).tolist() == [1, 2]


def test_nchw_and_nhwc():
    x = np.arange(2 * 3 * 4 * 5, dtype="float32").reshape(2, 3, 4, 5)
    y = to_nhwc(x)
    assert y.shape == (2, 4, 5, 3) and y.flags.c_contiguous and y.dtype == x.dtype
    assert all(y[b, h, w, c] == x[b, c, h, w] for b, c, h, w in np.ndindex(x.shape))
    assert np.array_equal(to_nchw(y), x) and to_nchw(y).flags.c_contiguous


@pytest.mark.parametrize("channels", [1, 3])
def test_the_border_never_hands_out_a_view_of_what_it_was_given(channels):
    """With one channel the transpose is already contiguous, and a layer may not write into the caller's array."""
    x = np.zeros((1, channels, 4, 5), dtype="float32")
    before = x.copy()
    assert np.array_equal(to_nchw(to_nhwc(x)), before)


# ----- devices -------------------------------------------------------------------------------------------------------------

SHAPES = [(), (5,), (3, 4), (2, 3, 4), (4, 3, 1, 1), (4, 1, 3, 3), (5, 2, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back_in_the_same_order_in_memory(shape):
    """A convolution's [O, I, KH, KW] lies as [KH, KW, I, O] on the device too: no launch has to copy it."""
    x = np.asarray(np.random.RandomState(0).randn(*shape), dtype="float32")
    x = x if len(shape) < 4 else np.ascontiguousarray(x.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
    with stand_in(count=2) as cupy:
        y = to_device(x, "cuda:1")
        assert isinstance(y, cupy.ndarray) and device_of(y) == "cuda:1" and y.shape == x.shape and y.dtype == x.dtype
        assert len(shape) < 4 or y.transpose(2, 3, 1, 0).flags.c_contiguous
        again = to_device(y, "cuda:0")
        assert device_of(again) == "cuda:0" and device_of(y) == "cuda:1"
        back = to_device(again, "cpu")
    assert type(back) is np.ndarray and np.array_equal(back, x)
    assert len(shape) < 4 or back.transpose(2, 3, 1, 0).flags.c_contiguous


def test_what_is_there_is_not_moved():
    x = np.zeros(3)
    assert to_device(x, "cpu") is x and device_of(x) == "cpu"
    with stand_in() as cupy:
        y = cupy.zeros(3)
        assert to_device(y, "cuda:0") is y


def test_like_brings_numbers_beside_another_array():
    with stand_in(count=2) as cupy:
        with cupy.cuda.Device(1):
            other = cupy.zeros(2, "float16")
        x = like(np.ones(3, "float32"), other)
        assert device_of(x) == "cuda:1" and x.dtype == np.float16
        host = like(x, np.zeros(1, "float32"))
        assert type(host) is np.ndarray and host.dtype == np.float32 and host.tolist() == [1, 1, 1]
        assert like([1, 2], np.zeros(1)).dtype == np.float64
        with beside(other):
            assert cupy.cuda.Device().id == 1
        with beside(host):
            assert cupy.cuda.Device().id == 0


def test_dtypes_of_the_host():
    assert [host_dtype(d) for d in ("float16", "float32", np.dtype("float64"))] == [np.float32, np.float32, np.float64]
