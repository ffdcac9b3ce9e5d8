"""Nothing that the constructors of diffusers and transformers know is overlooked by our configs."""

import dataclasses
import inspect

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig  # noqa: E402

pytestmark = pytest.mark.reference

HARMLESS = {
    "UNet2DConditionModel": {
        "dropout": "acts in training only",
        "addition_time_embed_dim": "read only if addition_embed_type is set, and that is refused",
        "projection_class_embeddings_input_dim": "read only if class_embed_type or addition_embed_type is set; both are refused",
        "addition_embed_type_num_heads": "read only if addition_embed_type is set, and that is refused",
    },
    "AutoencoderKL": {},
}
OTHER_DEFAULTS = {("UNet2DConditionModel", "sample_size"): "None there; the size a picture has when nobody asks for one"}
PAIRS = [(diffusers.UNet2DConditionModel, UNetConfig), (diffusers.AutoencoderKL, VAEConfig)]


def arguments(model) -> dict:
    parameters = dict(inspect.signature(model.__init__).parameters)
    parameters.pop("self")
    return parameters


@pytest.mark.parametrize("theirs, ours", PAIRS)
def test_every_argument_is_a_field_or_refused_or_harmless(theirs, ours):
    fields = {field.name for field in dataclasses.fields(ours)}
    harmless = HARMLESS[theirs.__name__]
    for name in arguments(theirs):
        assert (name in fields) + (name in ours._neutral) + (name in harmless) == 1, name
    assert set(harmless) <= set(arguments(theirs))


@pytest.mark.parametrize("theirs, ours", PAIRS)
def test_every_field_of_ours_is_an_argument_with_the_same_default(theirs, ours):
    known = arguments(theirs)
    for field in dataclasses.fields(ours):
        if (theirs.__name__, field.name) not in OTHER_DEFAULTS:
            assert field.default == known[field.name].default, field.name
    for name, allowed in ours._neutral.items():
        assert known[name].default in allowed, f"the default of {name} must be what we implement"


def test_clip_text_fields_have_the_defaults_of_transformers():
    theirs = transformers.CLIPTextConfig()
    for field in dataclasses.fields(CLIPTextConfig):
        assert field.default == getattr(theirs, field.name), field.name


def test_our_defaults_are_the_model_that_theirs_builds():
    """Not only the same words: the shapes of a model from an almost empty config agree."""
    from minisd.checkpoint import component_shapes

    small = {"block_out_channels": [32, 64], "norm_num_groups": 8, "cross_attention_dim": 16, "attention_head_dim": 4}
    blocks = {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    unet = diffusers.UNet2DConditionModel(**small, **blocks)
    assert component_shapes(UNetConfig.from_dict({**small, **blocks})) == {n: tuple(w.shape) for n, w in unet.state_dict().items()}
    vae = diffusers.AutoencoderKL()
    assert component_shapes(VAEConfig.from_dict({})) == {n: tuple(w.shape) for n, w in vae.state_dict().items()}
