"""Every official config is read or refused by name; what is not implemented is never ignored.

tests/golden/official_configs.json.xz: {model: {component: config}} as published on the hub for SD 1.4 … SDXL Turbo.
"""

import dataclasses
import json
import lzma
from pathlib import Path

import pytest

from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig
from minisd.errors import ModelFileError

OFFICIAL = json.loads(lzma.decompress((Path(__file__).parent / "golden" / "official_configs.json.xz").read_bytes()))
CLASSES = {"unet": UNetConfig, "vae": VAEConfig, "vae_1_0": VAEConfig, "text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig}
ALL = [(m, c) for m, parts in OFFICIAL.items() for c in parts if c in CLASSES]
XL = {(m, "unet") for m in OFFICIAL if m.startswith("sdxl")}

# A value that each field of `_neutral` must refuse, as files of other models have it.
FOREIGN = {
    UNetConfig: {
        "act_fn": "gelu", "center_input_sample": True, "downsample_padding": 0, "mid_block_scale_factor": 1.4,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "only_cross_attention": [True, True, True, False],
        "mid_block_only_cross_attention": True, "dual_cross_attention": True, "num_attention_heads": 8,
        "reverse_transformer_layers_per_block": [1, 1, 1, 1], "encoder_hid_dim": 768, "encoder_hid_dim_type": "text_proj",
        "class_embed_type": "timestep", "addition_embed_type": "text_time", "num_class_embeds": 1000,
        "resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.4,
        "time_embedding_type": "fourier", "time_embedding_act_fn": "gelu", "timestep_post_act": "silu", "time_cond_proj_dim": 256,
        "attention_type": "gated", "class_embeddings_concat": True, "cross_attention_norm": "group_norm",
    },
    VAEConfig: {"act_fn": "relu", "shift_factor": 0.1159, "latents_mean": [0.0, 0.0, 0.0, 0.0], "latents_std": [1.0, 1.0, 1.0, 1.0]},
    CLIPTextConfig: {"model_type": "t5", "hidden_act": "gelu_new"},
}  # fmt: skip


def refusal(cls, raw, **changes) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        cls.from_dict({**raw, **changes}, where="unet/config.json")
    e = caught.value
    assert e.what.startswith("unet/config.json: ") and e.why and e.fix
    return e


# ----- official files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, component", [pair for pair in ALL if pair not in XL])
def test_official_configs_are_read(model, component):
    raw = OFFICIAL[model][component]
    config = CLASSES[component].from_dict(raw, where=f"{model}/{component}")
    for field in dataclasses.fields(config):
        if raw.get(field.name) is not None:
            want = raw[field.name]
            assert getattr(config, field.name) == (tuple(want) if isinstance(want, list) else want), field.name
        else:
            assert getattr(config, field.name) == field.default, field.name


@pytest.mark.parametrize("model, component", sorted(XL))
def test_sdxl_is_refused_by_the_field_that_makes_it_xl(model, component):
    e = refusal(UNetConfig, OFFICIAL[model][component])
    assert "addition_embed_type = 'text_time' is not implemented" in e.what


@pytest.mark.parametrize(
    "model, in_channels, heads, context, linear, upcast, sample",
    [
        ("stable-diffusion-v1-4", 4, (8, 8, 8, 8), 768, False, False, 64),
        ("stable-diffusion-v1-5", 4, (8, 8, 8, 8), 768, False, False, 64),
        ("stable-diffusion-inpainting", 9, (8, 8, 8, 8), 768, False, False, 64),
        ("stable-diffusion-2-base", 4, (5, 10, 20, 20), 1024, True, False, 64),
        ("stable-diffusion-2", 4, (5, 10, 20, 20), 1024, True, False, 96),
        ("stable-diffusion-2-1", 4, (5, 10, 20, 20), 1024, True, True, 96),
        ("stable-diffusion-2-inpainting", 9, (5, 10, 20, 20), 1024, True, False, 64),
        ("sd-turbo", 4, (5, 10, 20, 20), 1024, True, False, 64),
    ],
)
def test_what_tells_the_families_apart(model, in_channels, heads, context, linear, upcast, sample):
    c = UNetConfig.from_dict(OFFICIAL[model]["unet"])
    assert (c.in_channels, c.per_block("attention_head_dim"), c.per_block("cross_attention_dim")) == (in_channels, heads, (context,) * 4)
    assert (c.use_linear_projection, c.upcast_attention, c.sample_size) == (linear, upcast, sample)
    assert (c.time_embed_dim, c.norm_eps, c.norm_num_groups, c.block_out_channels) == (1280, 1e-5, 32, (320, 640, 1280, 1280))


@pytest.mark.parametrize("model, layers, width, act", [("stable-diffusion-v1-4", 12, 768, "quick_gelu"), ("stable-diffusion-2", 23, 1024, "gelu")])
def test_text_encoders(model, layers, width, act):
    c = CLIPTextConfig.from_dict(OFFICIAL[model]["text_encoder"])
    assert (c.num_hidden_layers, c.hidden_size, c.hidden_act, c.layer_norm_eps) == (layers, width, act, 1e-5)


def test_vae():
    c = VAEConfig.from_dict(OFFICIAL["stable-diffusion-v1-4"]["vae"])
    assert (c.scaling_factor, c.downscale, c.latent_channels, c.layers_per_block) == (0.18215, 8, 4, 2)
    assert VAEConfig.from_dict(OFFICIAL["sdxl-base-1.0"]["vae"]).scaling_factor == 0.13025


# ----- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", FOREIGN, ids=lambda c: c.__name__)
def test_the_table_above_is_complete(cls):
    assert set(FOREIGN[cls]) == set(cls._neutral)


@pytest.mark.parametrize("cls, field", [(cls, field) for cls in FOREIGN for field in FOREIGN[cls]])
def test_what_is_not_implemented_is_refused_by_name(cls, field):
    value = FOREIGN[cls][field]
    e = refusal(cls, {}, **{field: value})
    assert e.what == f"unet/config.json: {field} = {value!r} is not implemented"
    assert f"minisd implements {field} = " in e.why


@pytest.mark.parametrize("cls, field", [(cls, field) for cls in FOREIGN for field in FOREIGN[cls]])
def test_what_is_implemented_may_be_said(cls, field):
    for value in cls._neutral[field]:
        assert cls.from_dict({field: value}) == (cls(hidden_act=value) if field == "hidden_act" else cls())


def test_a_list_of_neutral_values_is_neutral_and_one_other_is_not():
    assert UNetConfig.from_dict({"only_cross_attention": [False] * 4}) == UNetConfig()
    refusal(UNetConfig, {}, only_cross_attention=[False, False, True, False])
    refusal(UNetConfig, {}, only_cross_attention=[])


def test_zero_and_one_are_not_false_and_true():
    refusal(UNetConfig, {}, only_cross_attention=0)
    refusal(UNetConfig, {}, mid_block_scale_factor=True)


@pytest.mark.parametrize(
    "cls, field, kind",
    [
        (UNetConfig, "down_block_types", ["SimpleCrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
        (UNetConfig, "down_block_types", ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
        (UNetConfig, "up_block_types", ["UpBlock2D", "UpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"]),
        (UNetConfig, "up_block_types", ["DownBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"]),
        (VAEConfig, "down_block_types", ["AttnDownEncoderBlock2D"]),
        (VAEConfig, "up_block_types", ["UpBlock2D"]),
    ],
)
def test_unknown_blocks_are_refused_as_not_implemented(cls, field, kind):
    """The file is sound, only not ours: "fetch the file again" would send a person in a circle."""
    e = refusal(cls, {}, **{field: kind})
    assert "is not implemented" in e.what and any(k in e.what for k in kind)
    assert "contradict" not in e.why and "fetch" not in e.fix


@pytest.mark.parametrize(
    "cls, changes, words",
    [
        (UNetConfig, {"block_out_channels": [320, 640]}, "2 block_out_channels, 4 down blocks, 4 up blocks"),
        (UNetConfig, {"down_block_types": ["DownBlock2D"]}, "4 block_out_channels, 1 down blocks"),
        (UNetConfig, {"layers_per_block": [2, 2]}, "layers_per_block needs one value for each of the 4 blocks"),
        (UNetConfig, {"attention_head_dim": [8, 8]}, "attention_head_dim needs one value"),
        (UNetConfig, {"cross_attention_dim": [8] * 5}, "cross_attention_dim needs one value"),
        (UNetConfig, {"transformer_layers_per_block": [1]}, "transformer_layers_per_block needs one value"),
        (UNetConfig, {"attention_head_dim": 3}, "320 channels cannot be cut into 3 heads"),
        (UNetConfig, {"attention_head_dim": 0}, "attention_head_dim"),
        (UNetConfig, {"norm_num_groups": 48}, "320 channels cannot be cut into norm_num_groups = 48"),
        (UNetConfig, {"norm_num_groups": 0}, "norm_num_groups"),
        (UNetConfig, {"block_out_channels": [3, 6, 6, 6], "norm_num_groups": 3, "attention_head_dim": 3}, "even width"),
        (VAEConfig, {"block_out_channels": [64, 128]}, "2 block_out_channels, 1 down blocks, 1 up blocks"),
        (VAEConfig, {"block_out_channels": [40]}, "40 channels cannot be cut"),
        (VAEConfig, {"norm_num_groups": 0}, "norm_num_groups"),
        (VAEConfig, {"scaling_factor": 0.0}, "scaling_factor"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "hidden_size 512 cannot be cut into 7 heads"),
        (CLIPTextConfig, {"num_attention_heads": 0}, "num_attention_heads"),
        (CLIPTextConfig, {"hidden_size": 0}, "hidden_size"),
    ],
)
def test_contradictions_are_named(cls, changes, words):
    assert words in refusal(cls, {}, **changes).what


# ----- types ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, field, value",
    [
        (UNetConfig, "in_channels", "4"),
        (UNetConfig, "in_channels", 4.0),
        (UNetConfig, "in_channels", True),
        (UNetConfig, "in_channels", -4),
        (UNetConfig, "in_channels", 0),
        (UNetConfig, "in_channels", [4]),
        (UNetConfig, "block_out_channels", 320),
        (UNetConfig, "block_out_channels", []),
        (UNetConfig, "block_out_channels", [320, "640", 1280, 1280]),
        (UNetConfig, "block_out_channels", [[320], [640], [1280], [1280]]),
        (UNetConfig, "down_block_types", "DownBlock2D"),
        (UNetConfig, "norm_eps", "1e-5"),
        (UNetConfig, "norm_eps", float("nan")),
        (UNetConfig, "norm_eps", float("inf")),
        (UNetConfig, "norm_eps", -1e-5),
        (UNetConfig, "norm_eps", True),
        (UNetConfig, "use_linear_projection", 1),
        (UNetConfig, "use_linear_projection", "true"),
        (UNetConfig, "layers_per_block", {"down": 2}),
        (UNetConfig, "layers_per_block", [2, 2, 2, None]),
        (VAEConfig, "scaling_factor", "0.18215"),
        (VAEConfig, "force_upcast", "yes"),
        (VAEConfig, "sample_size", "512"),
        (CLIPTextConfig, "layer_norm_eps", {}),
        (CLIPTextConfig, "num_hidden_layers", 0),
    ],
)
def test_a_wrong_type_is_refused_with_field_and_value(cls, field, value):
    e = refusal(cls, {}, **{field: value})
    assert e.what.startswith(f"unet/config.json: {field} = ")
    assert "<class" not in e.why, "the expected type is named as people name it"


@pytest.mark.parametrize("raw", [None, [], "unet", 3])
def test_not_an_object(raw):
    with pytest.raises(ModelFileError, match=f"x.json: not a JSON object\n.*found {type(raw).__name__}"):
        UNetConfig.from_dict(raw, where="x.json")


def test_whole_numbers_are_floats_where_floats_are_wanted():
    c = UNetConfig.from_dict({"freq_shift": 0, "norm_eps": 1})
    assert (c.freq_shift, c.norm_eps) == (0.0, 1.0) and type(c.freq_shift) is type(c.norm_eps) is float


def test_null_is_the_default_and_unknown_fields_are_tolerated():
    for cls in CLASSES.values():
        nulls = {field.name: None for field in dataclasses.fields(cls) if field.name not in cls._neutral}
        assert cls.from_dict(nulls) == cls()
        assert cls.from_dict({"_class_name": "X", "dropout": 0.1, "torch_dtype": "float16", "no_such_field": {"a": 1}}) == cls()


def test_configs_are_values():
    c = UNetConfig.from_dict({"block_out_channels": [32, 64, 64, 64]})
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.in_channels = 9
    assert hash(c) == hash(UNetConfig.from_dict({"block_out_channels": [32, 64, 64, 64]}))
    assert dataclasses.replace(c, in_channels=9).in_channels == 9


def test_per_block_and_derived_values():
    c = UNetConfig.from_dict({"attention_head_dim": [5, 10, 20, 20], "layers_per_block": 2})
    assert c.per_block("attention_head_dim") == (5, 10, 20, 20) and c.per_block("layers_per_block") == (2, 2, 2, 2)
    assert c.time_embed_dim == 1280
    assert UNetConfig.from_dict({"time_embedding_dim": 64}).time_embed_dim == 64
    assert VAEConfig().downscale == 1


@pytest.mark.parametrize("config, field", [(UNetConfig, "layers_per_block"), (UNetConfig, "transformer_layers_per_block"), (VAEConfig, "layers_per_block"), (CLIPTextConfig, "num_hidden_layers")])  # fmt: skip
def test_a_billion_layers_are_refused(config, field):
    for count in (1_001, 10**9):
        with pytest.raises(ModelFileError, match=field):
            config.from_dict({field: count})
