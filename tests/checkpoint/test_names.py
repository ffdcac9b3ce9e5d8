"""The rename tables on the official lists of names: what is in the files becomes what minisd calls it, and nothing else changes."""

import json
import lzma
import re

import pytest

from minisd.checkpoint.names import COMPONENTS, RULES, from_ldm, is_ldm, official_name, official_shape, why_left_out
from tests.checkpoint.synthetic import GOLDEN, official

OLD, PREFIX, BUFFER, EMA = (
    "old VAE attention names",
    "text_model. prefix",
    "position_ids, a constant",
    "training averages",
)


@pytest.mark.parametrize(
    "name", ["unet_sd1", "unet_sd2_inpainting", "vae_new_names", "text_encoder_sd1", "text_encoder_sd2"]
)
def test_official_names_stay(name):
    component, _, shapes = official(name)
    assert [official_name(component, key) for key in shapes] == [(key, "") for key in shapes]


def test_old_vae_names_become_the_new_ones():
    _, _, old = official("vae_old_names")
    _, _, new = official("vae_new_names")
    renamed = {name: official_name("vae", name) for name in old}
    assert {renamed[name][0]: shape for name, shape in old.items()} == new
    changed = {name: new_name for name, (new_name, reason) in renamed.items() if reason == OLD}
    assert len(changed) == 16 and all(name != new_name for name, new_name in changed.items())
    for part in ("encoder", "decoder"):
        at = f"{part}.mid_block.attentions.0"
        assert [changed[f"{at}.{x}.weight"] for x in ("query", "key", "value", "proj_attn")] == [
            f"{at}.{x}.weight" for x in ("to_q", "to_k", "to_v", "to_out.0")
        ]
        assert f"{at}.group_norm.weight" not in changed


@pytest.mark.parametrize("name", ["text_encoder_sd1", "text_encoder_sd2"])
def test_the_text_prefix_is_added(name):
    component, _, expected = official(name)
    _, _, bare = official(f"{name}_transformers5")
    renamed = {official_name(component, key): shape for key, shape in bare.items()}
    assert renamed == {(key, PREFIX): shape for key, shape in expected.items()}


@pytest.mark.parametrize("component", COMPONENTS)
def test_constants_and_averages_are_left_out(component):
    for name in ("text_model.embeddings.position_ids", "embeddings.position_ids", "position_ids"):
        assert official_name(component, name) == (None, BUFFER)
    for name in ("model_ema.decay", "model_ema.num_updates", "model_ema.diffusion_modelinput_blocks00weight"):
        assert official_name(component, name) == (None, EMA)


def test_a_rule_holds_for_its_component_only():
    assert official_name("unet", "encoder.mid_block.attentions.0.query.weight") == (
        "encoder.mid_block.attentions.0.query.weight",
        "",
    )
    assert official_name("vae", "encoder.conv_in.weight") == ("encoder.conv_in.weight", "")
    assert official_name("text_encoder", "text_projection.weight") == ("text_projection.weight", "")
    assert official_name("vae", "encoder.mid_block.attentions.0.query.weight.evil")[1] == ""
    assert {rule.reason for rule in RULES} == {OLD, PREFIX, BUFFER, EMA}


def test_one_by_one_convolutions_of_the_vae_attention_are_linear():
    name = "encoder.mid_block.attentions.0.to_q.weight"
    assert official_shape("vae", name, (512, 512, 1, 1)) == (512, 512)
    assert official_shape("vae", name, (512, 512)) == (512, 512)
    assert official_shape("vae", name, (512, 512, 3, 3)) == (512, 512, 3, 3)
    assert official_shape("vae", "encoder.conv_in.weight", (4, 4, 1, 1)) == (4, 4, 1, 1)
    assert official_shape("unet", "down_blocks.0.attentions.0.proj_in.weight", (8, 8, 1, 1)) == (8, 8, 1, 1)


# ----- LDM -----------------------------------------------------------------------------------------------------------------

LDM = json.loads(lzma.decompress((GOLDEN / "ldm_keys.json.xz").read_bytes()))["files"]
SAME_WEIGHTS = {
    "ldm_sd1": ("unet_sd1", "vae_new_names", "text_encoder_sd1"),
    "ldm_sd2": ("unet_sd2", "vae_new_names", "text_encoder_sd2"),
    "ldm_sd_turbo": ("unet_sd2", "vae_new_names", "text_encoder_sd2"),
}


@pytest.mark.parametrize("file", LDM)
def test_a_single_file_holds_every_tensor_of_the_folder_once_in_its_shape(file):
    """Of a fused tensor each part has a third of the rows."""
    found = {}
    for name, targets in from_ldm(LDM[file]).items():
        for target in targets:
            component, _, rest = target.partition(".")
            rows, *columns = official_shape(component, rest, tuple(LDM[file][name])) or (1,)
            assert target not in found
            found[target] = (rows // len(targets), *columns)
    expected = {}
    for component, _, shapes in map(official, SAME_WEIGHTS[file]):
        expected |= {f"{component}.{name}": shape for name, shape in shapes.items()}
    assert found == expected


def test_what_stable_diffusion_does_not_use_has_no_name():
    unused = {name for name, targets in from_ldm(LDM["ldm_sd2"]).items() if not targets}
    families = {re.sub(r"resblocks\.23\..*", "resblocks.23", name.removeprefix("cond_stage_model.model.")) for name in unused}
    schedule = {"betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
                "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
                "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"}  # fmt: skip
    assert families == schedule | {"text_projection", "logit_scale", "transformer.resblocks.23", "model_ema.decay", "model_ema.num_updates"}
    assert not any(from_ldm(["model_ema.diffusion_modelinput_blocks00weight"]).values())
    reasons = {why_left_out(name) for file in LDM for name, targets in from_ldm(LDM[file]).items() if not targets}
    text = "OpenCLIP's last layer and projection"
    assert reasons == {("unet", "the training's schedule"), ("unet", EMA), ("text_encoder", BUFFER), ("text_encoder", text)}


@pytest.mark.parametrize(
    "ldm, names",
    [
        ("model.diffusion_model", ["unet"]),
        ("model.diffusion_model.input_blocks.1.0", ["unet.down_blocks.0.resnets.0"]),
        ("model.diffusion_model.input_blocks.1.0.in_layers.0", ["unet.down_blocks.0.resnets.0.norm1"]),
        ("model.diffusion_model.input_blocks.3.0.op", ["unet.down_blocks.0.downsamplers.0.conv"]),
        ("model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_out.0", ["unet.down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0"]),
        ("model.diffusion_model.middle_block.2.out_layers.3", ["unet.mid_block.resnets.1.conv2"]),
        ("model.diffusion_model.output_blocks.2.1", ["unet.up_blocks.0.upsamplers.0"]),
        ("model.diffusion_model.output_blocks.5.1", ["unet.up_blocks.1.attentions.2"]),
        ("model.diffusion_model.output_blocks.5.2.conv", ["unet.up_blocks.1.upsamplers.0.conv"]),
        ("model.diffusion_model.out.2", ["unet.conv_out"]),
        ("first_stage_model.decoder.up.3.block.0", ["vae.decoder.up_blocks.0.resnets.0"]),
        ("first_stage_model.decoder.mid.attn_1.proj_out", ["vae.decoder.mid_block.attentions.0.to_out.0"]),
        ("cond_stage_model.transformer.text_model.encoder.layers.3.mlp", ["text_encoder.text_model.encoder.layers.3.mlp"]),
        ("cond_stage_model.transformer.encoder.layers.3.mlp.fc1.bias", ["text_encoder.text_model.encoder.layers.3.mlp.fc1.bias"]),
        ("cond_stage_model.model.transformer.resblocks.22.mlp.c_fc", ["text_encoder.text_model.encoder.layers.22.mlp.fc1"]),
        ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias", [f"text_encoder.text_model.encoder.layers.0.self_attn.{x}_proj.bias" for x in "qkv"]),
        ("unet.conv_in", []),
    ],
)  # fmt: skip
def test_single_names(ldm, names):
    """Modules of a trace; a part of one, which does not show the structure, is read as Stable Diffusion's."""
    if "in_proj" in ldm:  # the last layer whose weights are there is left out
        names_there = [ldm, ldm.replace("resblocks.0", "resblocks.1").replace("bias", "weight")]
    else:
        names_there = [ldm]
    assert list(from_ldm(names_there)[ldm]) == names and is_ldm(ldm) is bool(names)


@pytest.mark.parametrize(
    "name", [
        "first_stage_model.decoder.up.{}.block.{}.x", "model.diffusion_model.input_blocks.{}.0.op", "cond_stage_model.model.transformer.resblocks.{}.x",
    ],
)  # fmt: skip
def test_large_numbers_in_names_cost_nothing(name):
    hostile = name.format(*["9" * 12] * 2)
    assert len(from_ldm([hostile])[hostile]) == 1


def test_the_structure_is_read_off_the_names():
    """Two levels of one resnet, the lower one without attention."""
    names = ["input_blocks.0.0.weight", "input_blocks.1.0.in_layers.0.weight", "input_blocks.1.1.norm.weight", "input_blocks.2.0.op.weight",
             "input_blocks.3.0.in_layers.0.weight", "output_blocks.0.0.in_layers.0.weight", "output_blocks.1.1.conv.weight",
             "output_blocks.2.1.norm.weight", "output_blocks.3.1.norm.weight"]  # fmt: skip
    found = [target for targets in from_ldm(f"model.diffusion_model.{name}" for name in names).values() for target in targets]
    assert found == [f"unet.{name}.weight" for name in (
        "conv_in", "down_blocks.0.resnets.0.norm1", "down_blocks.0.attentions.0.norm", "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.resnets.0.norm1", "up_blocks.0.resnets.0.norm1", "up_blocks.0.upsamplers.0.conv", "up_blocks.1.attentions.0.norm",
        "up_blocks.1.attentions.1.norm",
    )]  # fmt: skip
