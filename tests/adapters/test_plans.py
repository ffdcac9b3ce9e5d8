"""Adapters of the command line: what is typed, what a recipe says, and that the model keeps nothing but the merged weights."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from minisd import StableDiffusionPipeline
from minisd.adapters.plans import Plans, split_scale
from minisd.errors import ModelFileError, UsageError
from tests.tiny_folder import write_tiny_sd2

from .lora_bytes import matrices, peft
from .test_lora_file import BLOCK, SHAPES, UNET

PAIRS = matrices(SHAPES, {"unet": [f"{BLOCK}.attn1.to_q"]})


@pytest.mark.parametrize("typed, file, scale", [
    ("ink.safetensors", "ink.safetensors", 1.0), ("ink.safetensors:0.8", "ink.safetensors", 0.8), ("ink.bin:-1", "ink.bin", -1.0),
    ("a:b.safetensors", "a:b.safetensors", 1.0), (r"C:\\loras\\ink.pt", r"C:\\loras\\ink.pt", 1.0), ("a/b:1e-1", "a/b", 0.1), ("x:/y z", "x:/y z", 1.0),
])  # fmt: skip
def test_a_scale_stands_behind_the_last_colon(typed, file, scale):
    assert split_scale(typed) == (file, scale)


@pytest.mark.parametrize("typed", ["ink.safetensors:strong", "ink.safetensors:nan", "ink.safetensors:inf"])
def test_what_is_no_scale_is_refused(typed):
    with pytest.raises(UsageError, match="is no scale"):
        split_scale(typed)


def test_checked_applied_and_recorded(tmp_path):
    folder = write_tiny_sd2(tmp_path / "model")
    save_file(peft(PAIRS), tmp_path / "a.safetensors")
    save_file({"<zz>": np.zeros(22, "float32")}, tmp_path / "w.safetensors")
    plans = Plans.check([f"{tmp_path}/a.safetensors:0.5", f"{tmp_path}/a.safetensors"], [f"{tmp_path}/w.safetensors"], SHAPES, UNET.layers_per_block)
    assert plans.touched(SHAPES) == 18 * 18
    recipe = plans.recipe()
    assert [(lora["file"], lora["scale"], len(lora["sha256"])) for lora in recipe["loras"]] == [(f"{tmp_path}/a.safetensors", s, 64) for s in (0.5, 1.0)]
    assert recipe["embeddings"][0]["token"] == "<zz>"

    pipe, plain = (StableDiffusionPipeline.from_pretrained(folder) for _ in range(2))
    plans.apply(pipe)
    a, b = PAIRS["unet", f"{BLOCK}.attn1.to_q"]
    ours, theirs = (p.unet.params.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight for p in (pipe, plain))
    np.testing.assert_allclose(ours, theirs + 1.5 * (b @ a), rtol=1e-5, atol=1e-6)
    assert pipe.unet.adapters is None and "<zz>" in pipe.tokenizer.added_tokens()


def test_nothing_asked_for_is_nothing_done():
    plans = Plans.check((), (), SHAPES, UNET.layers_per_block)
    assert plans.recipe() == {} and plans.touched(SHAPES) == 0


def test_a_word_of_another_model_is_refused_before_weights_are_read(tmp_path):
    save_file({"<zz>": np.zeros(768, "float32")}, tmp_path / "w.safetensors")
    with pytest.raises(ModelFileError, match="768 numbers"):
        Plans.check((), [tmp_path / "w.safetensors"], SHAPES, UNET.layers_per_block)
