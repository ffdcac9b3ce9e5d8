"""Quick statistics are those of NumPy in float64, wherever the numbers lie and whatever is among them."""

import json
import math

import numpy as np
import pytest

from minisd.statistics import BLOCK, ROW, quick, slow, statistics


def of_numpy(x) -> dict:
    exact = x.astype("float64")
    return {"min": exact.min(), "max": exact.max(), "mean": exact.mean(), "std": exact.std(), "nan": 0, "inf": 0}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32"])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, -1e6])
@pytest.mark.parametrize("size", [1, 5, ROW, BLOCK, BLOCK + ROW + 7])
def test_they_are_numpys(size, mean, dtype):
    """|mean| ≫ std is where Σx² − (Σx)²/n in float32 has no correct digit: 10⁶ ± 1 in float32 has steps of 1/16."""
    if dtype == "float16" and abs(mean) > 1e3:
        mean = math.copysign(1e3, mean)
    x = (mean + np.random.RandomState(size).standard_normal(size)).astype(dtype)
    ours, exact = statistics(x.reshape(1, size)), of_numpy(x)
    assert (ours["min"], ours["max"], ours["nan"], ours["inf"]) == (exact["min"], exact["max"], 0, 0)
    assert abs(ours["mean"] - exact["mean"]) <= 1e-6 * exact["std"] + 1e-12 * abs(exact["mean"])
    assert abs(ours["std"] - exact["std"]) <= 1e-6 * exact["std"]


def test_blocks_of_different_means_are_put_together():
    x = np.concatenate([np.full(BLOCK, 5.0), np.full(BLOCK, -3.0), [1e4]]).astype("float32")
    ours, exact = statistics(x), of_numpy(x)
    assert ours == pytest.approx(exact, rel=1e-12)


def test_the_quick_way_is_the_slow_way():
    rows = np.random.RandomState(0).standard_normal((7, ROW)).astype("float32")
    assert quick(rows) == pytest.approx(slow(rows), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rows", [np.full((3, ROW), 7.0), np.zeros((1, 5)), np.full((2, ROW), 1e30), 1e4 + np.eye(4)], ids=["constant", "zero", "huge", "far"])
def test_where_the_quick_way_loses_digits_it_is_left(rows):
    """1e30 squared is ∞ in float32."""
    rows = rows.astype("float32")
    assert quick(rows) == slow(rows)


def test_what_is_not_finite_is_counted_and_left_out():
    x = np.array([1.0, np.nan, 3.0, np.inf, -np.inf, np.nan, np.nan], dtype="float32")
    assert statistics(x) == {"min": 1.0, "max": 3.0, "mean": 2.0, "std": 1.0, "nan": 3, "inf": 2}
    x = np.ones(3 * BLOCK, dtype="float32")
    x[BLOCK + 3] = np.nan
    assert statistics(x) == {"min": 1.0, "max": 1.0, "mean": 1.0, "std": 0.0, "nan": 1, "inf": 0}


@pytest.mark.parametrize("x", [np.zeros((0, 3), "float32"), np.array([np.nan, np.inf], "float32")], ids=["nothing", "nothing finite"])
def test_without_a_finite_value_there_is_no_range(x):
    found = statistics(x)
    assert (found["min"], found["max"], found["mean"], found["std"]) == (None, None, 0.0, 0.0) and found["nan"] + found["inf"] == x.size
    json.dumps(found, allow_nan=False)
