"""`minisd plot`: each picture is written under its name, with the content that the functions of `viz` give."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from minisd import Generator, StableDiffusionPipeline, viz
from minisd.image_input import preprocess_image, read_pictures

PROMPT = "a cat on a blue background"
FAST = ("--steps", "2", "-s", "1")


def test_schedule_plots_every_sampler_and_prints_the_numbers(minisd):
    code, out, _ = minisd("plot", "schedule", "--steps", "5", "--json")
    printed = json.loads(out)
    assert code == 0 and printed["path"] == "schedule.svg" and len(printed["lms"]) == 5
    assert printed["ddim"][0]["timestep"] == 801 and printed["ddim"][0]["sigma"] > 10
    root = ElementTree.parse("schedule.svg").getroot()
    assert len([e for e in root.iter() if e.tag.endswith("polyline")]) == 3


def test_schedule_of_one_sampler_on_a_logarithmic_axis(minisd):
    code, out, _ = minisd("plot", "schedule", "--scheduler", "lms", "--log", "--quantity", "alpha", "-o", "lms.svg")
    assert (code, out) == (0, "lms.svg\n")
    assert "lms" in Path("lms.svg").read_text(encoding="utf-8")


def test_latents_are_the_four_channels_of_the_run(minisd, pipe):
    assert minisd("plot", "latents", PROMPT, *FAST)[:2] == (0, "latents.png\n")
    x = pipe(PROMPT, num_inference_steps=2, seed=1, output_type="latent").images
    with Image.open("latents.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(viz.latent_channels(x)))


def test_a_picture_in_place_of_a_prompt(minisd, pipe):
    Image.new("RGB", (41, 34), (200, 30, 30)).save("red.png")
    assert minisd("plot", "latents", "-i", "red.png")[0] == minisd("plot", "noise", "-i", "red.png", "--steps", "3", "--at", "2")[0] == 0
    x = preprocess_image(read_pictures("red.png"), 32, 40)
    with Image.open("latents.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(viz.latent_channels(pipe.encode_image(x, Generator(0)))))
    with Image.open("noise.png") as image:
        red, green, blue = np.asarray(image)[-60:-20, 20:100].reshape(-1, 3).mean(axis=0)
    assert red > 150 and max(green, blue) < 90


def test_noise_prompt_and_attention(minisd):
    assert minisd("plot", "noise", PROMPT, *FAST, "--at", "0", "--at", "1", "-W", "32")[:2] == (0, "noise.png\n")
    assert minisd("plot", "prompt", PROMPT)[:2] == (0, "prompt.png\n")
    assert minisd("plot", "attention", PROMPT, *FAST, "-o", "where.png")[:2] == (0, "where.png\n")
    for name in ("noise.png", "prompt.png", "where.png"):
        with Image.open(name) as image:
            assert np.asarray(image).std() > 10


def test_files_are_numbered_unless_forced(minisd):
    names = [minisd("plot", "prompt", PROMPT, *force)[1].strip() for force in ((), (), ("--force",))]
    assert names == ["prompt.png", "prompt-1.png", "prompt.png"]


@pytest.mark.parametrize(
    "args, message",
    [
        (("schedule", "--scheduler", "eular"), "ddim, lms, pndm"),
        (("schedule", "--steps", "0"), "num_inference_steps = 0"),
        (("schedule", "-o", "a.png"), ".svg"),
        (("latents", PROMPT, "-o", "a.svg"), ".png"),
        (("latents", PROMPT, "-s", "-1"), "seed is -1"),
        (("latents", PROMPT, "--scheduler", "eular"), "ddim, lms, pndm"),
        (("noise", PROMPT, "--steps", "2", "--at", "2"), "index 2 is not in the schedule"),
        (("noise",), "either a prompt or a picture"),
        (("latents", PROMPT, "-i", "a.png"), "either a prompt or a picture"),
        (("latents", "-i", "no.png"), "no.png does not exist"),
        (("histogram",), "No such command"),
    ],
)
def test_what_cannot_be_meant_is_refused(minisd, args, message):
    code, out, err = minisd("plot", *args)
    assert code == 2 and message in err and out == ""


def test_names_are_checked_before_weights_are_read(minisd, monkeypatch):
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    for args in (("latents", PROMPT, "-o", "a.exe"), ("attention", PROMPT, "-s", "-1")):
        assert minisd("plot", *args)[0] == 2
