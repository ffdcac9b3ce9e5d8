"""Attention, feed-forward and the transformers, against the modules of diffusers and transformers."""

import numpy as np
import pytest

from minisd.layers.attention import for_both, multi_head, spatial_transformer
from minisd.layers.ready import products
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


@pytest.mark.parametrize("name", ["unet_sd1", "unet_sd2"])
def test_a_transformer_doubles_its_images_where_the_two_halves_of_guidance_part(name):
    """Half as many images as prompts are what twice the images are; and keys and values may be ready."""
    p = golden(name).model("float64").params.down_blocks[1].attentions[0]
    blocks = list(p.transformer_blocks)
    draw = np.random.RandomState(0).standard_normal
    C, C_text = (w.shape[1] for w in (blocks[0].attn1.to_q.weight, blocks[0].attn2.to_k.weight))
    x, context = draw((2, 3, 4, C)), draw((4, 5, C_text))
    options = dict(heads=golden(name).config["attention_head_dim"] if name == "unet_sd1" else 5, groups=6)
    (ready,) = products([layer for block in blocks for layer in (block.attn2.to_k, block.attn2.to_v)], context[None])
    expected = spatial_transformer(p, np.concatenate((x, x)), context, **options)
    before = x.copy()
    assert_close_f64(spatial_transformer(p, x, context, **options), expected, name="half", tolerance=1e-13)
    assert_close_f64(spatial_transformer(p, x, ready, **options), expected, name="half, ready", tolerance=1e-13)
    np.testing.assert_array_equal(spatial_transformer(p, np.concatenate((x, x)), ready, **options), expected)
    np.testing.assert_array_equal(x, before)


def test_for_both_repeats_the_batch_as_a_whole():
    """The first half of guidance has all images in order, and so has the second."""
    x, like = np.arange(3), np.zeros((6, 2))
    assert for_both(x, like).tolist() == [0, 1, 2, 0, 1, 2] and for_both(like, like) is like
