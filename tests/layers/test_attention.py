"""Attention, feed-forward and the transformers, against the modules of diffusers and transformers."""

import numpy as np
import pytest

from minisd.layers.attention import multi_head
from tests.goldens import check, every_record_of, golden
from tests.numerics import assert_close_f64

KINDS = (
    "Attention", "GEGLU", "FeedForward", "BasicTransformerBlock", "Transformer2DModel", "CLIPAttention", "CLIPMLP", "CLIPEncoderLayer",
)  # fmt: skip


@every_record_of(*KINDS)
def test_computes_what_the_reference_computes(name, path):
    check(golden(name), path)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_multi_head_is_one_head_after_another(heads, causal):
    """Head n owns the channels n·D … (n+1)·D − 1, and nothing else."""
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((2, 7, 12)) for _ in range(3))
    D = 12 // heads
    above = np.triu(np.full((7, 7), -np.inf), k=1) if causal else 0.0
    expected = []
    for n in range(heads):
        own = slice(n * D, (n + 1) * D)
        weights = np.exp(q[..., own] @ k[..., own].swapaxes(1, 2) / D**0.5 + above)
        expected.append(weights / weights.sum(axis=-1, keepdims=True) @ v[..., own])
    assert_close_f64(multi_head(q, k, v, heads=heads, causal=causal), np.concatenate(expected, axis=-1), name="multi_head", tolerance=1e-14)
