"""cuBLAS by ctypes: which matrix is which, told in its order by columns to a stand-in that reads and writes addresses."""

import numpy as np
import pytest

from minisd.ops.cuda.cublas import check, product, recorded_on
from tests.cudasim.recorder import Stream, put, recorder
from tests.cudasim.simulator import needs_simulator

pytestmark = needs_simulator


def draw(*shape):
    return np.random.RandomState(sum(shape)).standard_normal(shape).astype("float16")


@pytest.mark.parametrize("M, N, K", [(1, 1, 1), (5, 3, 7), (2, 16, 9)])
@pytest.mark.parametrize("by_columns", [False, True])
def test_product(M, N, K, by_columns):
    """Weights stored [N, K], as linear layers are, or [K, N], as 1×1 convolutions are, without a copy of either; rows of a larger array."""
    with recorder() as gpu:
        x, w = draw(2 * M, K), draw(N, K)
        expected = (x[:M].astype("float32") @ w.astype("float32").T).astype("float16")
        on_gpu = put(w.T.copy()).T if by_columns else put(w)
        np.testing.assert_array_equal(product(put(x)[:M], on_gpu).get(), expected)
        with recorded_on(Stream(non_blocking=True)):
            np.testing.assert_array_equal(product(put(x)[:M], on_gpu).get(), expected)
            np.testing.assert_array_equal(product(put(x)[::2], on_gpu).get(), (x[::2].astype("float32") @ w.astype("float32").T).astype("float16"))
        assert [name for name, *_ in gpu.cublas.calls].count("cublasCreate_v2") == 1


def test_without_a_product_there_is_no_handle():
    with recorder() as gpu:
        with recorded_on(Stream()) as blas:
            pass
        del blas
        assert gpu.cublas.calls == []


def test_an_error_says_its_status():
    with pytest.raises(RuntimeError, match="status 14"):
        check(14)
    check(0)
