"""The rename tables on the official lists of names: what is in the files becomes what minisd calls it, and nothing else changes."""

import pytest

from minisd.checkpoint.names import COMPONENTS, RULES, official_name, official_shape
from tests.checkpoint.synthetic import official

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
