"""Which file is read, and what is said where it is not the one asked for."""

import pytest

from minisd.checkpoint.variants import available, choose_weights, shards
from minisd.errors import ModelFileError

SAFE, HALF = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
OFFICIAL = [
    SAFE,
    HALF,
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.bin",
    "diffusion_pytorch_model.non_ema.safetensors",
    "config.json",
]


def choose(names, variant=None, component="unet", mixture=False):
    return choose_weights(names, component, variant, where="model/unet", mixture=mixture)


def test_what_there_is():
    assert available(OFFICIAL, "unet") == {
        None: SAFE,
        "fp16": HALF,
        "non_ema": "diffusion_pytorch_model.non_ema.safetensors",
    }
    assert available(OFFICIAL, "text_encoder") == {}
    assert available(
        ["model.safetensors", "model.fp16.safetensors", "model.safetensors.bak", "mymodel.safetensors"], "text_encoder"
    ) == {
        None: "model.safetensors",
        "fp16": "model.fp16.safetensors",
    }


def test_the_plain_file_or_the_variant():
    assert choose(OFFICIAL) == (SAFE, "")
    assert choose(OFFICIAL, "fp16") == (HALF, "")
    assert choose(OFFICIAL, "non_ema") == ("diffusion_pytorch_model.non_ema.safetensors", "")
    assert choose(["model.safetensors"], component="text_encoder") == ("model.safetensors", "")


def test_fp16_where_there_is_nothing_else():
    """SD 1.5-inpainting: the UNet as .bin, .fp16.bin and .fp16.safetensors only."""
    file, note = choose(["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin", HALF])
    assert file == HALF and note == "unet: there is no full-precision file; reading the variant fp16"


def test_a_variant_that_is_absent():
    with pytest.raises(ModelFileError) as caught:
        choose([SAFE], "fp16")
    assert str(caught.value) == f"model/unet has no variant 'fp16'\n  why:  it has {SAFE}\n  fix:  ask for no variant"
    with pytest.raises(ModelFileError, match="only variants") as caught:
        choose(["diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"])
    assert caught.value.fix == "ask for variant='bf16' or variant='non_ema'"


def test_a_mixture_is_named():
    file, note = choose([SAFE], "fp16", mixture=True)
    assert (
        file == SAFE and note == f"unet: there is no variant fp16; reading {SAFE} beside fp16 files of other components"
    )
    with pytest.raises(ModelFileError, match="no variant 'fp16'"):
        choose(["diffusion_pytorch_model.bf16.safetensors"], "fp16", mixture=True)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt", "x.pt", "x.pth", "x.pkl"]
)
def test_pickles_are_refused_with_the_recipe(name):
    with pytest.raises(ModelFileError) as caught:
        choose([name, "config.json"])
    error = caught.value
    assert error.what == f"model/unet holds its weights only as a pickle: {name}" and "can run code" in error.why
    lines = error.fix.splitlines()
    assert (
        len(lines) == 4
        and f'torch.load("{name}", map_location="cpu", weights_only=True)' in lines[2]
        and f'"{SAFE}")' in lines[3]
    )
    assert all(line.startswith("        ") for line in lines[1:])


def test_nothing_there():
    with pytest.raises(ModelFileError, match="holds no weights") as caught:
        choose(["config.json", "flax_model.msgpack"])
    assert caught.value.why == f"expected {SAFE}; it holds config.json, flax_model.msgpack"
    with pytest.raises(ModelFileError, match="holds no weights"):
        choose([])


@pytest.mark.parametrize(("index", "variant", "pattern"), [
    ("diffusion_pytorch_model.safetensors.index.json", None, "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
    ("diffusion_pytorch_model.safetensors.index.fp16.json", "fp16", "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors"),
    ("diffusion_pytorch_model.fp16.safetensors.index.json", "fp16", "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors"),
])  # fmt: skip
def test_shards(index, variant, pattern):
    parts = [pattern.format(1), pattern.format(2)]
    names = [
        *parts,
        index,
        "diffusion_pytorch_model.bf16-00001-of-00002.safetensors",
        "config.json",
        SAFE.replace("model.", "model-x."),
    ]
    assert available(names, "unet") == {variant: index}
    assert choose(names, variant)[0] == index
    assert shards(names, index) == parts


def test_a_single_file_wins_over_an_index():
    assert choose(["diffusion_pytorch_model.safetensors.index.json", SAFE]) == (SAFE, "")
