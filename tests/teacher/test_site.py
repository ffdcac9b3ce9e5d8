"""What a module's path tells: its view of the checkpoint, its heads, its ε."""

import pytest

from minisd.teacher import Site

from ..tiny_models import CONFIGS, build


@pytest.fixture(scope="module")
def unet():
    return build("unet_sd2", CONFIGS["unet_sd2"])


def test_heads_are_listed_downwards_and_mirrored_upwards(unet):
    heads = unet.config.per_block("attention_head_dim")
    assert len(set(heads)) > 1, "with equal heads the order would not show"
    assert [Site(unet, f"down_blocks.{i}.attentions.0").heads for i in range(len(heads))] == list(heads)
    assert [Site(unet, f"up_blocks.{i}.attentions.0").heads for i in range(len(heads))] == list(heads)[::-1]
    assert Site(unet, "mid_block.attentions.0").heads == heads[-1]


def test_the_view_is_cut_out_of_the_checkpoint(unet):
    assert Site(unet, "mid_block.resnets.1.conv1").p.path == "unet.mid_block.resnets.1.conv1"
    assert Site(unet, "").p is unet.params
    clip = build("clip_gelu", CONFIGS["clip_gelu"])
    assert Site(clip, "encoder.layers.0").p.path == "text_encoder.text_model.encoder.layers.0"


def test_eps_is_the_configs_in_the_unet_and_a_constant_in_the_vae(unet):
    vae = build("vae", CONFIGS["vae"])
    assert Site(unet, "conv_norm_out").eps == unet.config.norm_eps and not Site(unet, "").in_vae
    assert Site(vae, "decoder.conv_norm_out").eps == 1e-6 and Site(vae, "").in_vae
