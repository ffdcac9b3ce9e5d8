"""Winograd: its algebra in float64, and its bound in float32 on ragged sizes, uneven paddings and every way to cut the work."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import winograd
from tests.numerics import relative_l2

BOUNDS = {"winograd2": 1e-6, "winograd4": 4e-6}  # as their docstrings say


def draw(B, H, W, C, C_out, seed=0):
    random = np.random.RandomState(seed)
    x, w, b = random.randn(B, H, W, C), random.randn(C_out, C, 3, 3) / (9 * C) ** 0.5, random.randn(C_out)
    return tuple(a.astype("float32") for a in (x, w, b))


@pytest.mark.parametrize("F", [winograd.F2, winograd.F4], ids=["F2", "F4"])
def test_the_three_transforms_make_a_convolution(F):
    """Aᵀ[(G g) ⊙ (Bᵀ d)] is the correlation of d with g, to the last digits of float64."""
    random = np.random.RandomState(1)
    d, g = random.randn(F.m + 2, 5), random.randn(3)
    t, y = np.empty_like(d), np.empty((F.m, 5))
    F.transform_input(d, t)
    F.transform_output((F.G @ g)[:, None] * t, y)
    truth = [g @ d[i : i + 3] for i in range(F.m)]
    assert np.abs(y - truth).max() <= 1e-14


@pytest.mark.parametrize("padding", [1, 0, ((2, 1), (0, 3))], ids=["same", "valid", "uneven"])
@pytest.mark.parametrize("size", [(1, 32, 32), (2, 33, 47), (1, 67, 35), (3, 41, 38)], ids=str)
@pytest.mark.parametrize("rung", sorted(BOUNDS))
def test_stays_within_its_bound(rung, size, padding):
    x, w, b = draw(*size, 128, 131)
    with ops.using(conv2d=rung):
        y = ops.conv2d(x, w, b, padding=padding)
    truth = ops.conv2d(*(a.astype("float64") for a in (x, w, b)), padding=padding)
    assert y.dtype == np.float32 and y.shape == truth.shape
    assert relative_l2(y, truth) <= BOUNDS[rung]
    assert np.abs(y - truth).max() <= 10 * BOUNDS[rung] * np.abs(truth).max()


@pytest.mark.parametrize("tiles", [1, 7, 10_000])
@pytest.mark.parametrize("rung", sorted(BOUNDS))
def test_blocks_of_any_size_give_the_same(rung, tiles, monkeypatch):
    x, w, b = draw(2, 34, 37, 128, 128)
    monkeypatch.setattr(winograd, "TILES", tiles)
    with ops.using(conv2d=rung):
        y = ops.conv2d(x, w, None, padding=1)
    truth = ops.conv2d(x.astype("float64"), w.astype("float64"), None, padding=1)
    assert relative_l2(y, truth) <= BOUNDS[rung]


def test_the_points_halve_the_error_of_the_customary_ones():
    """Why ±1/√2 and ±√2 instead of ±1 and ±2: the largest coefficients of G and of the transforms are smaller."""
    ours, customary = winograd.F4.G, winograd.evaluation((0.0, 1.0, -1.0, 2.0, -2.0))
    assert np.linalg.cond(ours) < np.linalg.cond(customary)


def test_says_when_it_is_not_for_an_input():
    x, w, b = draw(1, 32, 32, 128, 128)
    for call, reason in [
        ((x, w[:, :, :1, :1], b, dict(padding=0)), "3×3 kernels"),
        ((x, w, b, dict(padding=1, stride=2)), "stride 1"),
        ((x[:, :8], w, b, dict(padding=1)), "tiles are too few"),
        ((x[..., :8], w[:, :8], b, dict(padding=1)), "channels on either side"),
        ((x.astype("float64"), w.astype("float64"), b.astype("float64"), dict(padding=1)), "float32"),
    ]:
        line = next(line for line in ops.explain("conv2d", *call[:3], **call[3]).splitlines() if "winograd4" in line)
        assert reason in line


def test_the_exact_profile_does_not_take_it():
    x, w, b = draw(1, 32, 32, 128, 128)
    assert "RUNS" in next(line for line in ops.explain("conv2d", x, w, b, padding=1).splitlines() if "winograd4" in line)
    with ops.using(profile="exact"):
        assert "not exact" in next(line for line in ops.explain("conv2d", x, w, b, padding=1).splitlines() if "winograd4" in line)
