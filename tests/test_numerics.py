"""The comparison helper fails where it must: a check that cannot fail proves nothing."""

import math

import numpy as np
import pytest

from tests.numerics import assert_close_f64, assert_faithful, max_error, relative_l2

TRUTH = np.random.RandomState(0).randn(5, 7)
PLAIN = TRUTH.astype("float32")


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def test_the_two_errors_by_hand():
    assert relative_l2([3.0, 4.0], [3.0, 5.0]) == pytest.approx(1 / math.sqrt(34))
    assert max_error([3.0, 4.0], [3.0, 5.0]) == pytest.approx(1 / 5)
    assert relative_l2([0.0], [0.0]) == max_error([0.0], [0.0]) == 0.0
    assert relative_l2([1e-30], [0.0]) == max_error([1e-30], [0.0]) == math.inf


def test_plain_itself_is_faithful_and_its_errors_are_returned():
    ours, plain = assert_faithful(PLAIN, TRUTH, PLAIN, name="plain")
    assert ours == plain == relative_l2(PLAIN, TRUTH)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_fails_and_names_the_place(value):
    with pytest.raises(AssertionError, match=r"conv: ours has .* at \(2, 3\)"):
        assert_faithful(changed(PLAIN, (2, 3), value), TRUTH, PLAIN, name="conv")
    with pytest.raises(AssertionError, match="plain has"):
        assert_faithful(PLAIN, TRUTH, changed(PLAIN, (2, 3), value), name="conv")
    with pytest.raises(AssertionError, match="ours has"):
        assert_close_f64(changed(TRUTH, (2, 3), value), TRUTH, name="conv")


def test_shape_and_dtype_have_to_agree():
    with pytest.raises(AssertionError, match="shapes"):
        assert_faithful(PLAIN.T, TRUTH, PLAIN, name="x")
    with pytest.raises(AssertionError, match="ours is float64, plain is float32"):
        assert_faithful(TRUTH, TRUTH, PLAIN, name="x")
    with pytest.raises(AssertionError, match="truth is float32"):
        assert_faithful(PLAIN, PLAIN, PLAIN, name="x")
    with pytest.raises(AssertionError, match="not float64"):
        assert_close_f64(PLAIN, TRUTH, name="x")


def test_one_wrong_element_fails_with_its_index_and_values():
    with pytest.raises(AssertionError, match=r"(?s)attn1.*worst at \(4, 6\).*ours .*truth .*plain"):
        assert_faithful(changed(PLAIN, (4, 6), PLAIN[4, 6] + np.float32(1e-5)), TRUTH, PLAIN, name="attn1")


def test_a_small_bias_everywhere_fails_in_l2():
    """Every element off by 3 ulp of the mean value: no single element is far off, but the sum is."""
    truth = np.full(1000, 1.0)
    truth[0] = 100.0  # makes the tolerance of the largest error generous
    plain = truth.astype("float32")
    with pytest.raises(AssertionError, match="L2 error"):
        assert_faithful(plain + np.float32(6e-6), truth, plain, name="bias")


def test_the_limit_is_twice_the_error_of_plain():
    truth = np.ones(8)
    plain = np.full(8, 1.0 + 1e-3, dtype="float32")
    assert_faithful(np.full(8, 1.0 - 1.9e-3, dtype="float32"), truth, plain, name="1.9 times")
    with pytest.raises(AssertionError, match="2.10 times"):
        assert_faithful(np.full(8, 1.0 - 2.1e-3, dtype="float32"), truth, plain, name="2.1 times")
    assert_faithful(np.full(8, 1.0 - 2.1e-3, dtype="float32"), truth, plain, name="2.1 times", factor=3.0)


def test_the_floor_is_one_unit_in_the_last_place():
    truth = np.ones(8)
    for dtype in ("float16", "float32", "float64"):
        plain, eps = truth.astype(dtype), np.finfo(dtype).eps
        assert_faithful(plain + eps, truth, plain, name="1 ulp")
        with pytest.raises(AssertionError):
            assert_faithful(plain + 2 * eps, truth, plain, name="2 ulp")


def test_a_zero_truth_is_no_excuse():
    zero, plain = np.zeros(4), np.full(4, 1e-6, dtype="float32")
    assert_faithful(plain, zero, plain, name="as wrong as plain")
    with pytest.raises(AssertionError):
        assert_faithful(3 * plain, zero, plain, name="wronger")


def test_close_f64():
    assert_close_f64(TRUTH * (1 + 1e-11), TRUTH, name="x")
    with pytest.raises(AssertionError, match="L2 error"):
        assert_close_f64(TRUTH * (1 + 1e-9), TRUTH, name="x")
    with pytest.raises(AssertionError, match="L2 error|largest error"):
        assert_close_f64(changed(TRUTH, (0, 0), TRUTH[0, 0] + 1e-8), TRUTH, name="x")
