"""Pixels to files: rounding, whole files or none, and the recipe that comes back out of a PNG."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from minisd import image
from minisd.errors import ResourceError, UsageError

RECIPE = {
    "prompt": "a fox — 狐", "negative_prompt": "rain", "model": "tiny", "seed": 32, "steps": 25, "cfg_scale": 7.5, "scheduler": "DDIMScheduler",
    "width": 8, "height": 8, "rng": "torch-cpu", "minisd": "0.1.0",
}  # fmt: skip


def picture(value: int = 0) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), value, dtype="uint8"))


def test_pixels_are_scaled_clipped_and_rounded_half_to_even():
    pixels = np.array([-1.5, -1.0, 0.0, 1.0, 1.5], dtype="float32").reshape(1, 1, 1, 5)
    assert image.latents_to_unit(pixels).ravel().tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    unit = np.array([0.0, 0.5 / 255, 1.5 / 255, 0.999, 1.0])
    assert image.unit_to_uint8(unit).tolist() == [0, 0, 2, 255, 255]


def test_channels_move_last():
    pixels = np.zeros((1, 3, 4, 5), dtype="float32")
    pixels[0, 0] = 1.0  # red
    [red] = image.unit_to_pil(image.latents_to_unit(pixels))
    assert red.size == (5, 4) and red.getpixel((0, 0)) == (255, 128, 128)


def test_one_channel_is_greyscale():
    assert image.unit_to_pil(np.full((1, 4, 5, 1), 0.5, dtype="float32"))[0].mode == "L"


def test_recipe_round_trip(tmp_path):
    path = tmp_path / "a.png"
    image.save_image(picture(), path, RECIPE)
    assert image.read_recipe(path) == RECIPE
    with Image.open(path) as opened:
        opened.load()
        assert opened.text["parameters"].startswith("a fox — 狐\nNegative prompt: rain\nSteps: 25, Sampler: DDIMScheduler, CFG scale: 7.5, Seed: 32, Size: 8x8")
        assert json.loads(opened.text["minisd"])["seed"] == 32


def test_a_png_of_someone_else_has_no_recipe(tmp_path):
    picture().save(tmp_path / "a.png")
    assert image.read_recipe(tmp_path / "a.png") is None


@pytest.mark.parametrize("suffix", image.FORMATS)
def test_every_format_can_be_read_back(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    image.save_image(picture(200), path, RECIPE)
    with Image.open(path) as opened:
        assert opened.size == (8, 8) and opened.convert("RGB").getpixel((3, 3)) == (200, 200, 200)


@pytest.mark.parametrize("suffix", sorted(set(image.ANIMATIONS) - {".mp4"}))  # tests/test_video.py
def test_animations_have_every_frame(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    image.save_animation([picture(0), picture(100), picture(200)], path)
    with Image.open(path) as opened:
        assert opened.n_frames == 3


def test_frames_into_a_folder(tmp_path):
    image.save_animation([picture(0), picture(100)], tmp_path / "steps")
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["0000.png", "0001.png"]


def test_existing_files_are_kept(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    assert image.check_output(path) == tmp_path / "a-1.png"
    (tmp_path / "a-1.png").touch()
    assert image.check_output(path) == tmp_path / "a-2.png"
    assert image.check_output(path, force=True) == path


@pytest.mark.parametrize("name, message", [("a.exe", "cannot write .exe"), ("a", "without suffix"), ("no/folder/a.png", "does not exist")])
def test_impossible_outputs_are_refused(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        image.check_output(tmp_path / name)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        image.save_image(picture(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
