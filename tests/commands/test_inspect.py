"""`minisd inspect` of weights, traces, folders and pictures."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from minisd.commands.inspect import make_again

from ..tiny_folder import EMBEDDED, write_tiny_sd2


def test_weights(minisd):
    code, out, _ = minisd("inspect", str(EMBEDDED / "unet" / "diffusion_pytorch_model.safetensors"))
    lines = out.splitlines()
    assert code == 0 and lines[0].endswith("326 tensors: UNet of diffusers, text width 128, text to image") and lines[-1] == "  all values are finite"
    assert "  conv_in.weight  F16  64×4×3×3" in lines
    for part, family in (("vae/diffusion_pytorch_model", "VAE of diffusers"), ("text_encoder/model", "CLIP text encoder of transformers")):
        assert json.loads(minisd("inspect", str(EMBEDDED / f"{part}.safetensors"), "--json")[1])["family"] == family


@pytest.mark.parametrize(
    "names, family",
    [
        ({"conv_in.weight": (4, 9, 3, 3), "down_blocks.0.attn2.to_k.weight": (4, 768)}, "UNet of diffusers, SD 1.x, inpainting"),
        ({"conv_in.weight": (4, 4, 3, 3), "down_blocks.0.attn2.to_k.weight": (4, 1024)}, "UNet of diffusers, SD 2.x, text to image"),
        ({"first_stage_model.decoder.conv_in.weight": (1,)}, "x.safetensors holds no UNet; it has the VAE of a model only"),
        ({"lora_unet_down.weight": (1,)}, "a LoRA"),
        ({"x": (1,)}, "unknown"),
    ],
)
def test_families(minisd, names, family):
    save_file({name: np.zeros(shape, "float16") for name, shape in names.items()}, "x.safetensors")
    assert json.loads(minisd("inspect", "x.safetensors", "--json")[1])["family"].startswith(family)


def test_nan_is_found(minisd):
    x = np.zeros((2, 3), "float16")
    x[1, 2], x[0, 0] = np.nan, -np.inf
    save_file({"good": np.zeros(2, "float32"), "bad": x, "ids": np.arange(3)}, "x.safetensors")
    code, out, _ = minisd("inspect", "x.safetensors")
    assert code == 0 and "NaN or Inf in bad: 2" in out and "all values are finite" not in out


def test_a_trace(minisd):
    minisd("trace", "a cat", "--steps", "1", "-W", "32", "-H", "32", "--at", "unet.conv_in", "-o", "t.safetensors")
    found = json.loads(minisd("inspect", "t.safetensors", "--json")[1])
    assert (found["kind"], found["family"], found["recipe"]["prompt"]) == ("trace", "1 calls of layers", "a cat")


def test_folders(minisd, tmp_path):
    code, out, _ = minisd("inspect", "tiny")
    assert code == 0 and "unet/diffusion_pytorch_model.safetensors: 326 tensors (326 expected), F16" in out
    found = json.loads(minisd("inspect", str(write_tiny_sd2(tmp_path / "model")), "--json")[1])
    assert found["classes"]["scheduler"] == "DDIMScheduler" and all(p["tensors"] == p["expected"] and p["dtypes"] == ["F32"] for p in found["parts"])


def test_a_picture_gives_the_command_that_makes_it_again(minisd):
    minisd("--steps", "2", "-s", "5", "-W", "32", "-n", "it's red", "--scheduler", "lms", "-o", "a.png", "a 'quoted' cat --force")
    code, out, _ = minisd("inspect", "a.png")
    command = shlex.split(out.splitlines()[1])
    assert code == 0 and command[:2] == ["minisd", "generate"]
    minisd(*command[1:-2], "-o", "b.png", *command[-2:])
    with Image.open("a.png") as a, Image.open("b.png") as b:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_recipe_of_strange_values_is_quoted():
    command = make_again({"prompt": "$(rm -rf x); `y`", "seed": 0, "scheduler": "PNDMScheduler", "model": "a b"})
    assert shlex.split(command) == ["minisd", "generate", "--model", "a b", "--seed", "0", "--scheduler", "pndm", "--", "$(rm -rf x); `y`"]


def test_refusals(minisd):
    Image.new("RGB", (2, 2)).save("plain.png")
    (open("broken.png", "wb")).close()
    assert minisd("inspect", "plain.png")[0] == 2
    assert minisd("inspect", "broken.png")[0] == 3
    assert minisd("inspect", "no/such/thing")[0] == 2
    save_file({"x": np.zeros(1)}, "x.safetensors")
    with open("x.safetensors", "r+b") as file:
        file.truncate(20)
    code, _, err = minisd("inspect", "x.safetensors")
    assert code == 3 and "x.safetensors is broken" in err
