"""Attention, backwards: masks, causality, more keys than queries, and memory that does not grow with the square of the tokens."""

import sys
import tracemalloc

import numpy as np
import pytest

from minisd import ops
from minisd.vjp import ops as vjp
from tests.vjp.projection import arrays, check

module = sys.modules["minisd.vjp.ops.attention"]  # the package has a function of that name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, (1, 1, 1, 7), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_attention(causal, mask, block, monkeypatch):
    monkeypatch.setattr(module, "SCORE_BYTES", block)  # of one byte: a block for every query
    q, k, v = arrays(f"attention {mask}", (2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
    bias = None if mask is None else arrays("mask", mask)[0]
    options = dict(scale=0.7, mask=bias, causal=causal)
    assert np.array_equal(vjp.attention(q, k, v, **options)[0], ops.attention(q, k, v, **options))
    check(lambda q, k, v: vjp.attention(q, k, v, **options), q, k, v, name="attention")


def test_the_score_matrix_is_never_there(monkeypatch):
    """2048 tokens have 17 MB of scores; with blocks of 1 MB the whole pullback needs less than half of that."""
    monkeypatch.setattr(module, "SCORE_BYTES", 1 << 20)
    q, k, v, dy = (a.astype("float32") for a in arrays("tokens", *[(1, 1, 2048, 8)] * 4))
    _, pullback = vjp.attention(q, k, v, scale=0.35)
    tracemalloc.start()
    pullback(dy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 4 * 2048**2 / 2
