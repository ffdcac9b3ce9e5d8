"""Loading against diffusers and transformers themselves: their state dicts for random configs, and the files they write."""

import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from minisd.checkpoint import clip_text_shapes, load_component, params_from_state_dict, unet_shapes, vae_shapes  # noqa: E402
from minisd.config import CLIPTextConfig, UNetConfig, VAEConfig  # noqa: E402
from tests.checkpoint.synthetic import official, old_vae_names  # noqa: E402

pytestmark = pytest.mark.reference


def shapes_of(make) -> dict:
    with torch.device("meta"):
        state = make().state_dict()
    return {name: tuple(x.shape) for name, x in state.items()}


def random_unet(rng: random.Random) -> dict:
    """Any number of blocks, widths and layers; lists or single values where both are allowed."""
    n, groups = rng.randint(1, 4), rng.choice((2, 4))

    def one_or_each(values):
        return rng.choice(values) if rng.random() < 0.5 else [rng.choice(values) for _ in range(n)]

    return {
        "in_channels": rng.randint(1, 9), "out_channels": rng.randint(1, 9), "norm_num_groups": groups,
        "block_out_channels": [8 * rng.randint(1, 4) for _ in range(n)], "layers_per_block": one_or_each((1, 2, 3)),
        "down_block_types": [rng.choice(("CrossAttnDownBlock2D", "DownBlock2D")) for _ in range(n)],
        "up_block_types": [rng.choice(("CrossAttnUpBlock2D", "UpBlock2D")) for _ in range(n)],
        "cross_attention_dim": one_or_each((6, 10, 16)), "transformer_layers_per_block": one_or_each((1, 2, 4)),
        "attention_head_dim": one_or_each((1, 2, 4)), "use_linear_projection": rng.random() < 0.5,
        "conv_in_kernel": rng.choice((1, 3, 5)), "conv_out_kernel": rng.choice((1, 3, 5)), "time_embedding_dim": rng.choice((None, 12, 40)),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_unet_shapes(seed):
    config = random_unet(random.Random(seed))
    assert unet_shapes(UNetConfig.from_dict(config)) == shapes_of(lambda: diffusers.UNet2DConditionModel(**config))


@pytest.mark.parametrize("seed", range(30))
def test_vae_shapes(seed):
    rng = random.Random(seed)
    n = rng.randint(1, 5)
    config = {
        "in_channels": rng.randint(1, 4), "out_channels": rng.randint(1, 4), "latent_channels": rng.randint(1, 16), "norm_num_groups": 2,
        "block_out_channels": [4 * rng.randint(1, 4) for _ in range(n)], "layers_per_block": rng.randint(1, 3),
        "down_block_types": ["DownEncoderBlock2D"] * n, "up_block_types": ["UpDecoderBlock2D"] * n, "use_quant_conv": rng.random() < 0.5,
        "use_post_quant_conv": rng.random() < 0.5, "mid_block_add_attention": rng.random() < 0.5,
    }  # fmt: skip
    assert vae_shapes(VAEConfig.from_dict(config)) == shapes_of(lambda: diffusers.AutoencoderKL(**config))


@pytest.mark.parametrize("seed", range(15))
def test_clip_text_shapes(seed):
    rng = random.Random(seed)
    config = {
        "vocab_size": rng.randint(3, 50), "hidden_size": 4 * rng.randint(1, 6), "intermediate_size": rng.randint(3, 40), "num_attention_heads": 4,
        "num_hidden_layers": rng.randint(1, 5), "max_position_embeddings": rng.randint(1, 77), "hidden_act": rng.choice(("gelu", "quick_gelu")),
    }  # fmt: skip
    expected = shapes_of(lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)))
    assert clip_text_shapes(CLIPTextConfig.from_dict(config)) == {
        f"text_model.{name.removeprefix('text_model.')}": x for name, x in expected.items()
    }


@pytest.mark.parametrize(
    "name", ["unet_sd1", "unet_sd1_inpainting", "unet_sd2", "unet_sd2_inpainting", "vae_new_names"]
)
def test_the_golden_lists_are_those_of_diffusers(name):
    component, config, shapes = official(name)
    model = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[component]
    assert shapes_of(lambda: model.from_config(vars(config))) == shapes


# ----- files ---------------------------------------------------------------------------------------------------------------


def tiny(component: str):
    torch.manual_seed(0)
    if component == "unet":
        return diffusers.UNet2DConditionModel(
            block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2, layers_per_block=1, sample_size=8,
        )  # fmt: skip
    if component == "vae":
        return diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
        )
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=30, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
        )
    )


def official_state(component: str, model) -> dict:
    prefix = "text_model." if component == "text_encoder" else ""
    return {
        prefix + name.removeprefix(prefix): x
        for name, x in model.state_dict().items()
        if not name.endswith("position_ids")
    }


def equal(params, state: dict) -> bool:
    loaded = dict(params.items())
    return loaded.keys() == state.keys() and all(
        np.array_equal(loaded[name], x.float().numpy()) for name, x in state.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_files_written_by_save_pretrained(tmp_path, component, dtype):
    model = tiny(component).to(dtype)
    model.save_pretrained(tmp_path / component)
    loaded = load_component(tmp_path, component)
    assert equal(loaded.params, official_state(component, model)) and not loaded.report.unexpected
    model.save_pretrained(tmp_path / "half" / component, variant="fp16")
    assert equal(
        load_component(tmp_path / "half", component).params, official_state(component, model)
    )  # the only one there is


def test_shards_written_by_save_pretrained(tmp_path):
    model = tiny("unet")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    loaded = load_component(tmp_path, "unet")
    assert len(loaded.report.files) > 2 and equal(loaded.params, model.state_dict())
    model.save_pretrained(tmp_path / "half", max_shard_size="40KB", variant="fp16")
    half = load_component(tmp_path / "half", "unet", variant="fp16")
    assert len(half.report.files) > 2 and equal(half.params, model.state_dict())


def test_old_vae_names_mean_to_diffusers_what_they_mean_here(tmp_path):
    model = tiny("vae")
    model.save_pretrained(tmp_path)
    old = old_vae_names(model.state_dict())
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path).state_dict()
    assert equal(load_component(tmp_path, "vae").params, theirs) and theirs.keys() != old.keys()


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_state_dicts_in_memory(tmp_path, component):
    model = tiny(component)
    model.save_pretrained(tmp_path)
    config = {"unet": UNetConfig, "vae": VAEConfig, "text_encoder": CLIPTextConfig}[component]
    config = config.from_dict(json.loads((tmp_path / "config.json").read_text()))
    params, _ = params_from_state_dict({name: x.numpy() for name, x in model.state_dict().items()}, component, config)
    assert equal(params, official_state(component, model))
