"""-i and --mask on the command line: pictures, the recipe that makes them again, and refusals with exit codes, before any weights."""

import json
import logging
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisd import edit, image
from minisd.commands.inspect import make_again

from .edit_cases import mask, picture
from .test_cli import assert_refused, run
from .test_image_input import png
from .tiny_folder import EMBEDDED, write_tiny_sd2

PROMPT = "a cat on a blue background"
FAST = ["--steps", "4", "--seed", "32", "-q"]
SMALL = (43, 49)  # becomes 40×48


@pytest.fixture(autouse=True)
def a_folder_with_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(*SMALL).save("photo.png")
    mask(*SMALL).save("mask.png")


def pixels(path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def test_a_picture_is_the_beginning_of_another(capsys):
    code, out, err = run(capsys, PROMPT, "-i", "photo.png", "--strength", "0.5", *FAST[:-1])
    assert (code, out) == (0, "minisd.png\n") and "48×40 · 4 steps of DDIMScheduler · photo.png, from step 2 · guidance" in err and "2 steps in" in err
    original = np.asarray(picture(*SMALL).resize((48, 40), Image.Resampling.LANCZOS)).astype(int)
    run(capsys, PROMPT, "-i", "photo.png", "--start-step", "0", *FAST, "-o", "whole.png")
    near, far = (np.abs(pixels(path) - original).mean() for path in ("minisd.png", "whole.png"))
    assert near < far


def test_a_mask_keeps_what_is_black(capsys):
    left = np.zeros(SMALL, "uint8")
    left[:, :25] = 255
    Image.fromarray(left).save("left.png")
    kept = []
    for seed in ("1", "2"):
        assert run(capsys, PROMPT, "-i", "photo.png", "--mask", "left.png", "--steps", "2", "-s", seed, "-q", "--force")[0] == 0
        kept.append(pixels("minisd.png"))
    difference = np.abs(kept[0] - kept[1]).mean(axis=(0, 2))
    assert difference[36:].max() < difference[:8].min()


@pytest.mark.parametrize(
    "options",
    [
        ["--start-step", "0", "--scheduler", "lms", "--cfg-scale", "0", "-n", "it's red"], ["--start-step", "2", "--scheduler", "pndm", "--no-compat"],
        ["--mask", "mask.png", "--strength", "0.5", "-W", "48"],
    ],
)  # fmt: skip
def test_the_recipe_makes_the_picture_again(capsys, options):
    assert run(capsys, PROMPT, "-i", "photo.png", *options, *FAST, "-o", "first.png")[0] == 0
    recipe = image.read_recipe("first.png")
    assert len(recipe["image_sha256"]) == 16 and recipe["image"] == "photo.png" and ("mask" in recipe) == ("--mask" in options)
    out = run(capsys, "inspect", "first.png", "--json")[1]
    words = shlex.split(json.loads(out)["command"])
    assert run(capsys, *words[1:-2], "-q", "-o", "second.png", *words[-2:])[0] == 0
    np.testing.assert_array_equal(pixels("first.png"), pixels("second.png"))


def test_the_recipe_names_files_without_their_folders():
    Path("private").mkdir()
    picture(*SMALL).save("private/photo.png")
    options = {"image": "private/photo.png", "mask": None, "strength": None, "start_step": None, "compat": True}
    recipe = edit.Edit.check(options).recipe
    assert recipe["image"] == "photo.png" and recipe["strength"] == 0.8 and "private" not in str(recipe)
    assert "--image photo.png --strength 0.8" in make_again({"prompt": "a", **recipe})


def test_the_parameters_that_others_read_have_the_strength():
    recipe = {"prompt": "a", "negative_prompt": "", "steps": 10, "scheduler": "DDIMScheduler", "cfg_scale": 7.5, "seed": 1, "width": 8, "height": 8,
              "model": "tiny", "rng": "torch-cpu", "minisd": "0"}  # fmt: skip
    assert "Denoising" not in image.a1111_parameters(recipe)
    assert "Denoising strength: 0.6, " in image.a1111_parameters({**recipe, "image": "a.png", "strength": 0.6})
    assert "Denoising strength: 0.7, " in image.a1111_parameters({**recipe, "image": "a.png", "start_step": 3})


def write_files():
    whole = Path("photo.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Path("page.png").write_text("<!doctype html>")
    Path("bomb.png").write_bytes(png(100_000, 100_000))
    Path("folder.png").mkdir()
    Image.new("RGB", (1, 1)).save("dot.png")
    Image.new("L", SMALL[::-1], 0).save("black.png")
    mask(SMALL[0], 80).save("wide.png")


REFUSED = {
    "no such picture": (["-i", "no.png"], 2, "the picture no.png does not exist"),
    "folder": (["-i", "folder.png"], 2, "is a folder"),
    "url": (["-i", "https://example.org/a.png"], 2, "nothing is fetched from the network"),
    "cut": (["-i", "cut.png"], 3, "cut.png cannot be read"),
    "html": (["-i", "page.png"], 3, "page.png is no picture"),
    "bomb": (["-i", "bomb.png"], 3, "the limit is 64 megapixels"),
    "tiny": (["-i", "dot.png"], 2, "the picture is 1×1 pixels"),
    "strength": (["-i", "photo.png", "--strength", "1.01"], 2, "strength is 1.01"),
    "nan": (["-i", "photo.png", "--strength", "nan"], 2, "strength is nan"),
    "no step": (["-i", "photo.png", "--strength", "0.01"], 2, "use a strength of at least 0.04"),
    "both": (["-i", "photo.png", "--strength", "0.5", "--start-step", "3"], 2, "either strength or start_step"),
    "late": (["-i", "photo.png", "--start-step", "25"], 2, "0 … 24"),
    "strength alone": (["--strength", "0.5"], 2, "--strength without a picture"),
    "start alone": (["--start-step", "0"], 2, "--start-step without a picture"),
    "mask alone": (["--mask", "mask.png"], 2, "--mask without a picture"),
    "compat alone": (["--no-compat"], 2, "--no-compat without a picture"),
    "no such mask": (["-i", "photo.png", "--mask", "no.png"], 2, "no.png does not exist"),
    "broken mask": (["-i", "photo.png", "--mask", "cut.png"], 3, "cut.png cannot be read"),
    "black mask": (["-i", "photo.png", "--mask", "black.png"], 2, "the mask is empty"),
    "wide mask": (["-i", "photo.png", "--mask", "wide.png"], 2, "the mask is 80×43, the picture 49×43"),
    "odd size": (["-i", "photo.png", "-W", "65"], 2, "width is 65"),
    "too big": (["-i", "photo.png", "-W", "524288", "-H", "524288"], 4, "TB of memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(capsys, monkeypatch, name):
    write_files()
    assert_refused(capsys, monkeypatch, *REFUSED[name])


def test_an_inpainting_model_asks_for_a_mask(capsys, tmp_path):
    write_tiny_sd2(tmp_path / "model", in_channels=9)
    code, _, err = run(capsys, PROMPT, "-m", "model", "-i", "photo.png")
    assert code == 2 and "-i and --mask" in err
    assert run(capsys, PROMPT, "-m", "model", "-i", "photo.png", "--mask", "mask.png", "--steps", "2", "-q")[0] == 0


def test_pndm_begins_without_runge_kutta(capsys, caplog):
    with caplog.at_level(logging.INFO, "minisd"):
        code, _, err = run(capsys, PROMPT, "-i", "photo.png", "--scheduler", "pndm", "--strength", "0.5", *FAST[:-1])
    assert code == 0 and "3 steps in" in err
    with open(EMBEDDED / "scheduler" / "scheduler_config.json") as file:
        assert ("skip_prk_steps" in caplog.text) != bool(json.load(file).get("skip_prk_steps"))


def test_help_says_what_the_options_do(capsys):
    _, out, _ = run(capsys, "generate", "--help")
    text = " ".join(out.split())
    for words in ("Begin with this picture", "repaint where this picture is white", "Default: 0.8, with --mask 1.", "instead of --strength"):
        assert words in text
