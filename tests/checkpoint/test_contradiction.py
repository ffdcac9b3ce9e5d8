"""Which field of config.json is at fault is found from the shapes alone."""

import pytest

from minisd.checkpoint.contradiction import contradictions
from minisd.checkpoint.shapes import component_shapes
from tests.checkpoint.synthetic import config, official

CASES = [
    ("unet", "in_channels", 4, 9),
    ("unet", "out_channels", 4, 8),
    ("unet", "cross_attention_dim", 10, 14),
    ("unet", "conv_in_kernel", 3, 1),
    ("unet", "conv_out_kernel", 3, 5),
    ("unet", "use_linear_projection", False, True),
    ("unet", "layers_per_block", 1, 2),
    ("unet", "transformer_layers_per_block", 1, 3),
    ("unet", "time_embedding_dim", None, 20),
    ("unet", "block_out_channels", (8, 12), (8, 16)),
    ("vae", "latent_channels", 4, 16),
    ("vae", "in_channels", 3, 1),
    ("vae", "layers_per_block", 1, 2),
    ("vae", "use_quant_conv", True, False),
    ("vae", "mid_block_add_attention", True, False),
    ("vae", "block_out_channels", (4, 6), (4, 8)),
    ("text_encoder", "hidden_size", 10, 12),
    ("text_encoder", "intermediate_size", 14, 16),
    ("text_encoder", "num_hidden_layers", 2, 1),
    ("text_encoder", "num_hidden_layers", 2, 5),
    ("text_encoder", "vocab_size", 30, 31),
    ("text_encoder", "max_position_embeddings", 9, 77),
]


@pytest.mark.parametrize(("component", "field", "says", "have"), CASES)
def test_the_field_is_found(component, field, says, have):
    weights = component_shapes(config(component, **{field: have}))
    assert contradictions(config(component), weights) == [(field, says, have)]


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_nothing_is_claimed_where_all_fits_or_nothing_explains(component):
    shapes = component_shapes(config(component))
    assert contradictions(config(component), shapes) == []
    name = list(shapes)[-1]
    assert contradictions(config(component), {key: shape for key, shape in shapes.items() if key != name}) == []
    assert contradictions(config(component), {**shapes, name: (77,)}) == []
    assert contradictions(config(component), {}) == []


def test_official_models_under_the_config_of_another_family():
    _, sd1, _ = official("unet_sd1")
    _, _, sd2 = official("unet_sd2_inpainting")
    found = {field: (says, have) for field, says, have in contradictions(sd1, sd2)}
    assert found == {"use_linear_projection": (False, True), "cross_attention_dim": (768, 1024), "in_channels": (4, 9)}


def test_a_file_with_very_many_names_is_not_searched(monkeypatch):
    shapes = component_shapes(config("unet", in_channels=9))
    monkeypatch.setattr("minisd.checkpoint.contradiction.distance", None)  # the search would call it
    assert contradictions(config("unet"), {**shapes, **{f"x.{i}": (i,) for i in range(5000)}}) == []
    with pytest.raises(TypeError):
        contradictions(config("unet"), shapes)
