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


def test_attention_probabilities_can_be_tapped():
    """`<path>/probs` is asked for by name, and explains the layer's output: out(probs · V)."""
    from minisd.layers.attention import attention, split_heads
    from minisd.layers.basic import linear
    from minisd.params import Params
    from minisd.tracing import trace

    draw = np.random.RandomState(0).standard_normal
    weights = {f"{name}.weight": draw((6, 6)) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    p = Params.from_state_dict(weights, path="attn")
    x, context = draw((2, 5, 6)), draw((2, 7, 6))
    with trace("attn/probs") as seen:
        y = attention(p, x, context, heads=3)
    probs = seen["attn/probs"]
    assert probs.shape == (2, 3, 5, 7)
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0, rtol=1e-12)
    joined = (probs @ split_heads(linear(p.to_v, context), 3)).transpose(0, 2, 1, 3).reshape(2, 5, 6)
    np.testing.assert_allclose(linear(p.to_out[0], joined), y, rtol=1e-10)
    with trace("attn*") as seen:
        attention(p, x, context, heads=3)
    assert "attn/probs" not in seen  # a pattern without a slash does not pay for it
