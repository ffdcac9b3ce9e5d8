"""What TMA is told of an array: which views and boxes it can have, and the call of the driver (a stand-in here: there is none)."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from minisd.errors import ResourceError
from minisd.ops.cuda import tensor_map as module
from minisd.ops.cuda.tensor_map import TensorMap, encoded

X = np.zeros((2, 6, 5, 40), "float16")
ODD = np.zeros((6, 41), "float16")
WIDE = np.zeros((6, 48), "float16")


@pytest.mark.parametrize(
    "array, box, swizzle",
    [(X, (1, 8, 16, 64), 128), (X, (2, 1, 1, 16), 32), (X.transpose(2, 0, 1, 3), (1, 1, 1, 32), 64), (WIDE[:, :40], (1, 64), 128)],
)  # fmt: skip
def test_what_can_be_mapped(array, box, swizzle):
    assert TensorMap(array, box, swizzle).problem() is None


@pytest.mark.parametrize(
    "array, box, swizzle, problem",
    [
        (X, (8, 16, 64), 128, "4 axes and a box of 3"), (X[0, 0, 0], (64,), 128, "1 axes"), (X, (1, 1, 1, 64), 64, "rows of 64 bytes"),
        (X, (1, 1, 257, 64), 128, r"a box \(1, 1, 257, 64\)"), (X, (0, 1, 1, 64), 128, "a box"), (X, (1, 1, 1, 8), 16, "rows of 16 bytes"),
        (ODD, (1, 64), 128, r"strides \(82, 2\)"), (X.transpose(0, 3, 2, 1), (1, 1, 1, 64), 128, "the last must be 2"),
        (X[:0], (1, 1, 1, 64), 128, r"\(0, 6, 5, 40\) has strides"),
    ],
)  # fmt: skip
def test_what_cannot(array, box, swizzle, problem):
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(TensorMap(array, box, swizzle).problem())


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it is asked, and answers with `code`."""
    seen = SimpleNamespace(calls=[], code=0)

    def encode(struct, *args):
        ctypes.memset(struct, 7, 128)
        seen.calls.append((struct.value, *[list(a) if isinstance(a, ctypes.Array) else getattr(a, "value", a) for a in args]))
        return seen.code

    monkeypatch.setattr(module, "driver", lambda: SimpleNamespace(cuTensorMapEncodeTiled=encode))
    encoded.cache_clear()
    yield seen
    encoded.cache_clear()


def test_the_driver_is_told_everything_from_the_innermost_axis_outwards(driver):
    struct = encoded(4096, X.shape, X.strides, (1, 8, 16, 64), 128)
    assert encoded(4096, X.shape, X.strides, (1, 8, 16, 64), 128) is struct, "asked once for each array and box"
    ((address, *told),) = driver.calls
    float16, rank, interleave, swizzle_128, l2_256, zeros = 6, 4, 0, 3, 3, 0
    assert told == [float16, rank, 4096, [40, 5, 6, 2], [80, 400, 2400], [64, 16, 8, 1], [1, 1, 1, 1], interleave, swizzle_128, l2_256, zeros]
    assert address % 64 == 0 and address == struct.ctypes.data
    assert struct.size == 1 and struct.dtype.itemsize == 128 and struct.tobytes() == b"\7" * 128


def test_a_refusal_of_the_driver_is_an_error(driver):
    driver.code = 1
    with pytest.raises(ResourceError, match=r"the driver refuses a tensor map of \(2, 6, 5, 40\)") as caught:
        encoded(4096, X.shape, X.strides, (1, 1, 1, 64), 128)
    assert "error 1" in caught.value.why


def test_without_a_driver_the_error_says_so(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    module.driver.cache_clear()
    with pytest.raises(ResourceError, match="driver is not installed"):
        module.driver()
