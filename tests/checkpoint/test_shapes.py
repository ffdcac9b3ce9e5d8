"""The tables of contents against the official state dicts, name by name and shape by shape."""

import math

import pytest

from minisd.checkpoint import clip_text_shapes, component_shapes, unet_shapes, vae_shapes
from tests.checkpoint.synthetic import config, official

ELEMENTS = {
    "unet_sd1": 859_520_964,
    "unet_sd1_inpainting": 859_535_364,
    "unet_sd2": 865_910_724,
    "unet_sd2_inpainting": 865_925_124,
    "vae_new_names": 83_653_863,
    "text_encoder_sd1": 123_060_480,
    "text_encoder_sd2": 340_387_840,
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_equals_the_official_state_dict(name):
    component, config, expected = official(name)
    derive = {"unet": unet_shapes, "vae": vae_shapes, "text_encoder": clip_text_shapes}[component]
    shapes = derive(config)
    assert shapes == expected
    assert sum(math.prod(shape) for shape in shapes.values()) == ELEMENTS[name]
    assert component_shapes(config) == shapes


def test_a_shortcut_only_where_the_channels_change():
    shapes = unet_shapes(config("unet", block_out_channels=[8, 8]))
    assert "down_blocks.1.resnets.0.conv_shortcut.weight" not in shapes
    assert shapes["up_blocks.0.resnets.0.conv_shortcut.weight"] == (8, 16, 1, 1)  # [x, skip] is always wider
    assert unet_shapes(config("unet"))["down_blocks.1.resnets.0.conv_shortcut.weight"] == (12, 8, 1, 1)


def test_lists_are_read_backwards_on_the_way_up():
    shapes = unet_shapes(config(
        "unet", layers_per_block=[1, 2], cross_attention_dim=[10, 14], transformer_layers_per_block=[1, 3],
        down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2,
    ))  # fmt: skip
    assert shapes["up_blocks.0.attentions.2.transformer_blocks.2.attn2.to_k.weight"] == (12, 14)
    assert shapes["up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k.weight"] == (8, 10)
    assert shapes["mid_block.attentions.0.transformer_blocks.2.attn2.to_k.weight"] == (12, 14)
    assert "up_blocks.0.resnets.3.norm1.weight" not in shapes and "up_blocks.1.resnets.2.norm1.weight" not in shapes
    # The skips of block 0 have 8 channels, those of block 1 have 12 and, below its downsampler, 8.
    assert [shapes[f"up_blocks.{i}.resnets.{j}.norm1.weight"] for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))] == [
        (24,),
        (24,),
        (20,),
        (20,),
        (16,),
    ]


def test_the_vae_without_its_options():
    shapes = vae_shapes(config("vae", use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False))
    assert not any("quant_conv" in name or "attentions" in name for name in shapes)
    assert len(vae_shapes(config("vae"))) - len(shapes) == 2 + 2 + 2 * 10
