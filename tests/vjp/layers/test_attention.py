"""Attention in its four surroundings, backwards."""

import pytest

from minisd.vjp.layers import attention
from tests.goldens import golden
from tests.vjp.projection import arrays, check

UNETS = {"unet_sd1": (18, 20), "unet_sd2": (18, 22)}  # projections by convolution, by linear layers


@pytest.mark.parametrize("name", UNETS)
def test_spatial_transformer(name):
    width, text = UNETS[name]
    p = golden(name).model("float64").params.down_blocks[0].attentions[0]
    x, context = arrays(name, (2, 3, 5, width), (2, 4, text))
    check(lambda x, c: attention.spatial_transformer(p, x, c, heads=3, groups=6), x, context, name="spatial_transformer")


def test_the_parts_of_a_transformer():
    p = golden("unet_sd1").model("float64").params.down_blocks[0].attentions[0].transformer_blocks[0]
    x, context = arrays("parts", (2, 7, 18), (2, 4, 20))
    check(lambda x, c: attention.transformer_block(p, x, c, heads=3), x, context, name="transformer_block")
    check(lambda x: attention.attention(p.attn1, x, heads=3), x, name="self-attention")
    check(lambda x, c: attention.attention(p.attn2, x, c, heads=3), x, context, name="cross-attention")
    check(lambda x: attention.feed_forward(p.ff, x), x, name="feed_forward")
    check(lambda x: attention.geglu(p.ff.net[0], x), x, name="geglu")


def test_vae_attention():
    p = golden("vae").model("float64").params.decoder.mid_block.attentions[0]
    (x,) = arrays("vae", (2, 3, 5, 30))
    check(lambda x: attention.vae_attention(p, x, groups=6, eps=1e-6), x, name="vae_attention")


@pytest.mark.parametrize("name, act, heads, width", [("clip_quick_gelu", "quick_gelu", 5, 30), ("clip_gelu", "gelu", 4, 28)])
def test_clip_layer(name, act, heads, width):
    p = golden(name).model("float64").params.text_model.encoder.layers[0]
    (x,) = arrays(name, (2, 7, width))
    check(lambda x: attention.clip_layer(p, x, heads=heads, act=act, eps=1e-5), x, name="clip_layer")
    check(lambda x: attention.clip_attention(p.self_attn, x, heads=heads), x, name="clip_attention")
    check(lambda x: attention.clip_mlp(p.mlp, x, act=act), x, name="clip_mlp")
