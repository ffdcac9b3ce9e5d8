"""Norms where the mean is large, the variance zero, or a group longer than a block. Values on every case: `test_ladder.py`."""

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import norm
from tests.numerics import assert_faithful

GROUP_NORMS = [rung.name for rung in ops.RUNGS["group_norm"] if rung.owner in ("any", "numpy")]
LAYER_NORMS = [rung.name for rung in ops.RUNGS["layer_norm"] if rung.owner in ("any", "numpy")]


def affine(C):
    random = np.random.RandomState(C)
    return (1 + 0.2 * random.randn(C)).astype("float32"), random.randn(C).astype("float32")


def truth_of(op, x, w, b, **kwargs):
    """Two passes in float64 with the mean removed first, so that nothing cancels: sums of numbers of order 1."""
    wide, w, b = x.astype("float64"), w.astype("float64"), b.astype("float64")
    with ops.using(**{op: "reference"}):
        return getattr(ops, op)(wide - wide.flat[0], w, b, **kwargs)


@pytest.mark.parametrize("rung", GROUP_NORMS)
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3, -1e3, 1e4])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_group_norm_is_exact_at_every_mean(rung, mean, eps):
    """Not only as near as torch (whose error grows to 3e-5 at mean 1000), but within rounding of the result."""
    x = (np.random.RandomState(0).randn(2, 11, 13, 12) + mean).astype("float32")
    w, b = affine(12)
    with ops.using(group_norm=rung):
        y = ops.group_norm(x, w, b, groups=3, eps=eps)
    truth = truth_of("group_norm", x, w, b, groups=3, eps=eps)
    assert_faithful(y, truth, truth.astype("float32"), name=f"{rung}, mean {mean}")


@pytest.mark.parametrize("rung", GROUP_NORMS)
@pytest.mark.parametrize("value", [0.0, 0.1, 7.1, 1000.1, -3e4])
def test_group_norm_of_a_constant_is_its_bias(rung, value):
    """Variance zero: what remains of the rounding of the mean must be small beside √ε."""
    x = np.full((1, 37, 41, 6), value, dtype="float32")
    w, b = affine(6)
    with ops.using(group_norm=rung):
        y = ops.group_norm(x, w, b, groups=2, eps=1e-6)
    np.testing.assert_allclose(y, np.broadcast_to(b, y.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pixels", [1, 4, 5, 6, 9, 10, 11, 23])
def test_group_norm_over_blocks_of_5_pixels(pixels, monkeypatch):
    monkeypatch.setattr(norm, "BLOCK", 5 * 12 + 3)
    x = np.random.RandomState(pixels).randn(2, pixels, 12).astype("float32")
    w, b = affine(12)
    with ops.using(group_norm="blocked"):
        y = ops.group_norm(x, w, b, groups=4, eps=1e-5, act="silu")
    truth = truth_of("group_norm", x, w, b, groups=4, eps=1e-5, act="silu")
    assert_faithful(y, truth, truth.astype("float32"), name=f"{pixels} pixels", factor=4.0)  # two roundings: the norm's and SiLU's


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_images_of_a_batch_do_not_mix(dtype):
    x = np.random.RandomState(0).randn(3, 5, 7, 12).astype(dtype) * np.array([1, 10, 100], dtype=dtype)[:, None, None, None]
    w, b = (a.astype(dtype) for a in affine(12))
    y = ops.group_norm(x, w, b, groups=3, eps=1e-5)
    for one, of_batch in zip(x, y):
        assert np.array_equal(ops.group_norm(one[None], w, b, groups=3, eps=1e-5)[0], of_batch)


def test_fused_silu_is_the_same_silu():
    """A listener makes the layers take two steps instead of one; looking must not change the picture by a bit."""
    x = np.random.RandomState(0).randn(2, 5, 7, 12).astype("float32")
    w, b = affine(12)
    two_steps = ops.silu(ops.group_norm(x, w, b, groups=3, eps=1e-5))
    assert np.array_equal(ops.group_norm(x, w, b, groups=3, eps=1e-5, act="silu"), two_steps)


def test_the_goldens_tell_the_two_epsilons_apart(golden_ops):
    """1e-5 belongs to the UNet's resnets, 1e-6 to the VAE and the transformers: at small variance the difference is gross."""
    a, b = (golden_ops[f"group_norm/small_variance_eps_{eps}/truth"] for eps in ("1e-05", "1e-06"))
    assert np.abs(a - b).max() > 0.1


@pytest.mark.parametrize("rung", LAYER_NORMS)
@pytest.mark.parametrize("mean, bound", [(0.0, 2e-7), (10.0, 2e-6), (1e3, 2e-4)])
def test_layer_norm_at_a_large_mean(rung, mean, bound):
    """The error of the mean grows with the mean: half a unit in its last place, over a deviation of 1."""
    x = (np.random.RandomState(0).randn(7, 320) + mean).astype("float32")
    w, b = affine(320)
    with ops.using(layer_norm=rung):
        y = ops.layer_norm(x, w, b, eps=1e-5)
    truth = truth_of("layer_norm", x, w, b, eps=1e-5)
    assert np.linalg.norm(y - truth) / np.linalg.norm(truth) <= bound


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7])
def test_layer_norm_over_blocks_of_3_tokens(tokens, monkeypatch):
    monkeypatch.setattr(norm, "BLOCK", 3 * 13 + 1)
    x = np.random.RandomState(tokens).randn(tokens, 13).astype("float32")
    w, b = affine(13)
    whole = ops.layer_norm(x, w, b, eps=1e-5)
    rows = np.concatenate([ops.layer_norm(row[None], w, b, eps=1e-5) for row in x])
    assert np.array_equal(whole, rows)
