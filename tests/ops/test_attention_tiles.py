"""Attention without the maximum: tiles of every size, and the rows that overflow or vanish and are done again."""

import math

import numpy as np
import pytest

from minisd import ops
from minisd.ops.cpu import attention
from tests.numerics import assert_faithful


def attend(rung, q, k, v, **kwargs):
    with ops.using(attention=rung):
        return ops.attention(q, k, v, **{"scale": 0.5, **kwargs})


def draw(B, N, S, T, D, D_out, seed=0):
    random = np.random.RandomState(seed)
    return tuple(random.randn(B, N, n, d).astype("float32") for n, d in ((S, D), (T, D), (T, D_out)))


def check(q, k, v, name, **kwargs):
    wide = {key: a.astype("float64") if isinstance(a, np.ndarray) else a for key, a in kwargs.items()}
    truth = attend("reference", *(a.astype("float64") for a in (q, k, v)), **wide)
    y = attend("tiled", q, k, v, **kwargs)
    assert_faithful(y, truth, attend("reference", q, k, v, **kwargs), name=name)


@pytest.mark.parametrize("tile", [(1, 1), (5, 3), (64, 32), (512, 256)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_of_every_size(tile, causal, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", tile[0])
    monkeypatch.setattr(attention, "KEYS", tile[1])
    check(*draw(2, 2, 71, 77, 10, 13), f"tiles {tile}", causal=causal, mask=np.linspace(-3, 3, 77, dtype="float32"))


@pytest.mark.parametrize("shift", [-1e4, -100.0, -60.0, 60.0, 100.0, 1e4])
def test_rows_out_of_range_are_done_again(shift):
    """A mask that shifts all scores of the odd rows changes nothing: softmax(s + c) = softmax(s). exp(100) is beyond float32."""
    q, k, v = draw(1, 2, 6, 300, 8, 5)
    mask = np.zeros((6, 300), dtype="float32")
    mask[1::2] = shift
    y = attend("tiled", q, k, v, mask=mask)
    assert np.isfinite(y).all()
    check(q, k, v, f"shift {shift}", mask=mask)
    assert np.array_equal(y[:, :, ::2], attend("tiled", q, k, v)[:, :, ::2])  # the others are not touched


@pytest.mark.parametrize("shift, size", [(60.0, 1e15), (36.0, 1e24)])
def test_values_that_overflow_before_the_division(shift, size):
    """Σ exp(s) is within float32, Σ exp(s) v is not, and their quotient is."""
    q, k, v = draw(1, 1, 3, 300, 8, 5)
    check(q, k, v * np.float32(size), "large values", mask=np.full((3, 300), shift, dtype="float32"))


def test_only_the_lost_rows_are_done_again(monkeypatch):
    again = []
    right = attention.softmax
    monkeypatch.setattr(attention, "softmax", lambda scores: again.append(scores.shape) or right(scores))
    q, k, v = draw(1, 1, 9, 11, 4, 4)
    q[0, 0, 3] *= 1000.0
    check(q, k, v, "one long query")
    assert again == [(1, 11)]


def test_large_logits_of_either_sign_in_one_row():
    q, k, v = draw(1, 1, 40, 500, 8, 8)
    check(q * 30.0, k, v, "logits of ± 150")


def test_a_row_is_nan_where_the_textbook_is():
    q, k, v = draw(1, 1, 4, 5, 3, 3)
    q[0, 0, 2, 0] = math.nan
    y = attend("tiled", q, k, v)
    assert np.isnan(y[0, 0, 2]).all() and np.isfinite(y[0, 0, [0, 1, 3]]).all()


def test_masked_keys_weigh_nothing():
    q, k, v = draw(1, 2, 7, 300, 4, 4)
    mask = np.where(np.arange(300) < 280, -math.inf, 0.0).astype("float32")  # the whole first tile of keys
    np.testing.assert_allclose(attend("tiled", q, k, v, mask=mask), attend("tiled", q, k[:, :, 280:], v[:, :, 280:]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("features", [{}, {"AVX512_SKX": True}, {"X86_V4": True}], ids=["e", "2, NumPy 2.3", "2"])
def test_both_powers_give_the_same_softmax(features, monkeypatch):
    power, base = attention.fastest_power(features)
    assert (power, base) == ((np.exp2, 2.0) if features else (np.exp, math.e))
    monkeypatch.setattr(attention, "POWER", power)
    monkeypatch.setattr(attention, "BASE", base)
    check(*draw(2, 3, 40, 300, 8, 5), f"powers of {base:g}", mask=np.linspace(-3, 3, 300, dtype="float32"))


@pytest.mark.parametrize("N", [1, 3, 5, 12])
@pytest.mark.parametrize("S, T", [(77, 77), (3, 5), (600, 7)])
def test_short_heads_share_a_tile(N, S, T):
    """Together or one by one; and a row that overflows in one head is done again in that head alone."""
    q, k, v = draw(2, N, S, T, 6, 4)
    q[1, N - 1, 2] *= 1000.0
    check(q, k, v, f"{N} heads of {S} × {T}")
    one_by_one = [attend("tiled", q[:, n : n + 1], k[:, n : n + 1], v[:, n : n + 1]) for n in range(N)]
    np.testing.assert_allclose(attend("tiled", q, k, v), np.concatenate(one_by_one, axis=1), rtol=0, atol=1e-6)
