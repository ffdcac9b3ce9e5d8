"""The translations themselves: where the standard's cases would not tell an adapter's mistake from an op's."""

import numpy as np
import pytest

pytest.importorskip("onnx")

from minisd.onnx_suite.adapters import OPERATORS, TABLE, NotOurs, conv, facade, gather, matmul, resize, rms_normalization  # noqa: E402

RANDOM = np.random.RandomState(0)


def draw(*shape):
    return RANDOM.standard_normal(shape).astype("float64")


def test_every_adapter_is_an_operator_under_its_name():
    assert [operator.__name__ for operator in OPERATORS] == list(TABLE)


def test_the_facade_remembers_what_was_called():
    facade.called.clear()
    matmul(draw(3, 4), draw(4, 5))
    assert facade.called == {"linear"}


@pytest.mark.parametrize("a, b", [((3, 4), (4, 5)), ((4,), (4, 5)), ((2, 1, 3, 4), (5, 4, 6)), ((3, 4), (4,))])
def test_matmul_broadcasts_as_numpy_does(a, b):
    x, y = draw(*a), draw(*b)
    np.testing.assert_allclose(matmul(x, y), x @ y, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_takes_any_axis_and_counts_from_the_end(axis):
    table, ids = draw(3, 4, 5), np.array([[0, -1], [2, 1]])
    np.testing.assert_array_equal(gather(table, ids, axis=axis), np.take(table, ids, axis=axis))


def test_a_dilated_grouped_strided_convolution_is_its_definition():
    x, w = draw(1, 4, 7, 9), draw(6, 2, 3, 2)
    y = conv(x, w, None, auto_pad="NOTSET", dilations=[2, 3], group=2, kernel_shape=[3, 2], pads=[1, 0, 2, 1], strides=[2, 1])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1)))
    for o, h, v in np.ndindex(y.shape[1:]):
        first = 0 if o < 3 else 2
        window = padded[0, first : first + 2, 2 * h : 2 * h + 5 : 2, v : v + 4 : 3]
        np.testing.assert_allclose(y[0, o, h, v], (window * w[o]).sum(), rtol=1e-10)


def test_rms_norm_has_no_mean():
    x, w = 3.0 + draw(2, 8), draw(8)
    expected = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * w
    np.testing.assert_allclose(rms_normalization(x, w, axis=-1, epsilon=1e-3, stash_type=1), expected, rtol=1e-10)


def test_what_is_not_ours_says_so():
    with pytest.raises(NotOurs, match="doubles"):
        resize(draw(1, 2, 3, 3), scales=[1, 1, 3, 3], mode="nearest")
