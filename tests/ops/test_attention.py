"""The query blocks of attention, their memory, masks. Values on every case: `test_ladder.py`."""

import math
import tracemalloc

import numpy as np
import pytest

from minisd import ops
from minisd.errors import ContractError
from minisd.ops.cpu import attention
from tests.numerics import assert_close_f64

RUNGS = [rung.name for rung in ops.RUNGS["attention"] if rung.owner in ("any", "numpy")]
every_rung = pytest.mark.parametrize("rung", RUNGS)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 8])
def test_every_split_into_query_blocks(rows, causal, monkeypatch):
    """7 queries in blocks of one, of a divisor ± 1, of all, of more than all."""
    random = np.random.RandomState(rows)
    q, k, v, mask = random.randn(2, 2, 7, 3), random.randn(2, 2, 11, 3), random.randn(2, 2, 11, 5), random.randn(1, 2, 7, 11)
    with ops.using(attention="reference"):
        truth = ops.attention(q, k, v, scale=0.5, mask=mask, causal=causal)
    monkeypatch.setattr(attention, "SCORE_BYTES", rows * 11 * 8 + 5)
    with ops.using(attention="chunked"):
        y = ops.attention(q, k, v, scale=0.5, mask=mask, causal=causal)
    assert_close_f64(y, truth, name=f"blocks of {rows}", tolerance=1e-14)


@every_rung
def test_masked_keys_are_not_read(rung):
    """−∞ is exact: huge values behind it leave no trace, and the weights of the others are as if it were not there."""
    random = np.random.RandomState(0)
    q, k, v = (random.randn(1, 2, 5, 4).astype("float32") for _ in range(3))
    mask = np.zeros((5, 5), dtype="float32")
    mask[:, 3] = -math.inf
    hidden = v.copy()
    hidden[:, :, 3] = 1e30
    seen = [0, 1, 2, 4]
    with ops.using(attention=rung):
        y = ops.attention(q, k, v, scale=0.5, mask=mask)
        assert np.array_equal(ops.attention(q, k, hidden, scale=0.5, mask=mask), y)
        without = ops.attention(q, k[:, :, seen], v[:, :, seen], scale=0.5)
    np.testing.assert_allclose(y, without, rtol=0, atol=1e-6)


@every_rung
def test_causal_tokens_do_not_see_what_follows(rung):
    random = np.random.RandomState(0)
    q, k, v = (random.randn(1, 2, 9, 4).astype("float32") for _ in range(3))
    with ops.using(attention=rung):
        y = ops.attention(q, k, v, scale=0.5, causal=True)
        for a in (q, k, v):
            a[:, :, 6:] = 7.0
        assert np.array_equal(ops.attention(q, k, v, scale=0.5, causal=True)[:, :, :6], y[:, :, :6])
        assert np.array_equal(y[:, :, 0], ops.attention(q[:, :, :1], k[:, :, :1], v[:, :, :1], scale=0.5)[:, :, 0])


@every_rung
def test_logits_beyond_the_range_of_exp(rung):
    """Scores of ± 10⁴: without the maximum subtracted, exp would overflow."""
    q = np.array([100.0, -100.0], dtype="float32").reshape(1, 1, 2, 1)
    v = np.array([1.0, 2.0], dtype="float32").reshape(1, 1, 2, 1)
    with ops.using(attention=rung):
        assert ops.attention(q, q, v, scale=1.0).ravel().tolist() == [1.0, 2.0]


def test_heads_of_a_split_projection():
    """As the layers call it: q, k, v are views [B, N, S, D] of [B, S, N·D], and joining the heads again is a free reshape."""
    random = np.random.RandomState(0)
    x = random.randn(2, 7, 12).astype("float32")
    heads = x.reshape(2, 7, 3, 4).transpose(0, 2, 1, 3)
    y = ops.attention(heads, heads, heads, scale=0.5)
    assert np.array_equal(y, ops.attention(*[np.ascontiguousarray(heads)] * 3, scale=0.5))
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous


def test_memory_at_64x64_latents():
    """One head of a 64×64 latent has 64 MiB of scores; they are never all there."""
    S = 64 * 64
    x = np.random.RandomState(0).randn(1, 1, S, 4).astype("float32")
    tracemalloc.start()
    try:
        ops.attention(x, x, x, scale=0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= attention.SCORE_BYTES + (1 << 20) <= S * S * 4 / 4


@every_rung
def test_a_mask_and_causal_together_are_one_mask(rung):
    q, k, v = np.random.RandomState(0).standard_normal((3, 1, 2, 5, 4)).astype("float32")
    mask = np.zeros((5, 5), dtype="float32")
    mask[:, 1] = -np.inf
    both = mask + np.triu(np.full((5, 5), -np.inf, dtype="float32"), k=1)
    with ops.using(attention=rung):
        together = ops.attention(q, k, v, scale=0.5, mask=mask, causal=True)
        np.testing.assert_array_equal(together, ops.attention(q, k, v, scale=0.5, mask=both))
        mask[:, 0] = -np.inf  # now the first query sees nothing: key 0 is masked, the others come later
        with pytest.raises(ContractError, match="a row of −∞"):
            ops.attention(q, k, v, scale=0.5, mask=mask, causal=True)
