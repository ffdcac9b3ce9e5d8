"""The families of single files at full size, by the official lists of names, against the published configs; and what is no such file."""

import dataclasses
import json
import lzma

import numpy as np
import pytest

from minisd.checkpoint import open_single_file, read_model_index
from minisd.checkpoint.families import FAMILIES, refusal
from minisd.checkpoint.safetensors_file import StoredTensor
from minisd.errors import ModelFileError
from tests.checkpoint.ldm import CLASSES, LDM
from tests.checkpoint.synthetic import GOLDEN, safetensors_bytes

OFFICIAL = json.loads(lzma.decompress((GOLDEN / "official_configs.json.xz").read_bytes()))

EULERS_DEFAULTS = ("_diffusers_version", "interpolation_type", "sample_max_value", "sigma_max", "sigma_min", "timestep_type", "use_karras_sigmas")
FULL_SIZE = [
    ("ldm_sd1", 4, None, "stable-diffusion-v1-5", "1"),
    ("ldm_sd1", 9, None, "stable-diffusion-inpainting", "1 inpainting"),
    ("ldm_sd2", 4, "epsilon", "stable-diffusion-2-1-base", "2"),
    ("ldm_sd2", 4, "v_prediction", "stable-diffusion-2-1", "2 v"),
    ("ldm_sd2", 9, None, "stable-diffusion-2-inpainting", "2 inpainting"),
    ("ldm_sd_turbo", 4, None, "sd-turbo", "turbo"),
]


@pytest.mark.parametrize("file, in_channels, prediction, model, family", FULL_SIZE)
def test_the_configs_are_the_official_ones(tmp_path, monkeypatch, file, in_channels, prediction, model, family):
    shapes = {**LDM[file], "model.diffusion_model.input_blocks.0.0.weight": [320, in_channels, 3, 3]}
    header = {name: StoredTensor(tmp_path, name, "F32", tuple(shape), 0) for name, shape in shapes.items()}
    monkeypatch.setattr("minisd.checkpoint.single_file.read_header", lambda path: header)
    (tmp_path / "x.safetensors").write_bytes(b"")
    single = open_single_file(tmp_path / "x.safetensors", prediction)
    assert single.family is FAMILIES[family] and single.family.repository.endswith(model)
    for component, cls in CLASSES.items():
        official = cls.from_dict(OFFICIAL[model][component])
        if component == "vae":  # its sample_size differs at random, and is never read
            official = dataclasses.replace(official, sample_size=8 * single.family.sample_size)
        assert single.config(component) == official
    settings = OFFICIAL[model]["scheduler"]
    for name, value in {"prediction_type": "epsilon", **settings}.items():
        if name not in EULERS_DEFAULTS:
            assert single.scheduler[name] == value, name
    assert set(single.scheduler) <= {"prediction_type", *settings}
    assert single.index["_class_name"] == ("StableDiffusionInpaintPipeline" if in_channels == 9 else "StableDiffusionPipeline")


@pytest.mark.parametrize(
    "names, kind, fix",
    [
        (["conditioner.embedders.1.model.ln_final.bias", "model.diffusion_model.input_blocks.0.0.weight"], "is an SDXL checkpoint", "1.x or 2.x"),
        (["conditioner.embedders.0.model.ln_final.bias", "model.diffusion_model.label_emb.0.0.weight"], "is an SDXL refiner", "1.x or 2.x"),
        (["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"], "is a Flux checkpoint", "1.x or 2.x"),
        (["double_blocks.0.img_mod.lin.bias"], "is a Flux checkpoint", "1.x or 2.x"),
        (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"], "is an SD 3 checkpoint", "1.x or 2.x"),
        (["control_model.time_embed.0.weight", "model.diffusion_model.input_blocks.0.0.weight"], "is a ControlNet", "1.x or 2.x"),
        (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "is a ControlNet", "1.x or 2.x"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "is a LoRA", "--lora"),
        (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "is a LoRA", "--lora"),
        (["down_blocks.0.attentions.0.attn1.processor.to_q_lora.up.weight"], "is a LoRA", "--lora"),
        (["<cat-toy>"], "is a textual inversion", "--embedding"),
        (["decoder.conv_in.weight"], "is a VAE alone", "whole model"),
        (["first_stage_model.decoder.conv_in.weight"], "holds no UNet", "whole model"),
        (["down_blocks.0.resnets.0.conv1.weight"], "is a UNet of diffusers", "model_index.json"),
        (["text_model.embeddings.token_embedding.weight"], "is a text encoder alone", "whole model"),
        (["weird"], "is no Stable Diffusion checkpoint", "model.diffusion_model"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, names, kind, fix):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({name: np.zeros((2, 2), "float32") for name in names}))
    with pytest.raises(ModelFileError) as caught:
        read_model_index(path)
    error = caught.value
    assert kind in error.what and str(path) in error.what and fix in error.fix


@pytest.mark.parametrize("file", LDM)
def test_the_official_files_are_not_refused(tmp_path, file):
    assert refusal(tmp_path, LDM[file]) is None
