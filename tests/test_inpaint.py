"""Inpainting with a nine-channel UNet and with any other: diffusers' pictures, what stays, what is drawn when, and wrong arguments."""

import logging

import numpy as np
import pytest

from minisd import Generator, StableDiffusionInpaintPipeline, StableDiffusionPipeline, schedulers
from minisd.errors import UsageError
from minisd.image_input import preprocess_image, read_pictures
from minisd.inpaint import share

from .conftest import GOLDEN
from .edit_cases import CASES, PROMPT, mask, model_folder, paint, picture
from .test_pipeline import assert_same_picture


@pytest.fixture(scope="module")
def text_pipes(tmp_path_factory) -> dict:
    return {n: StableDiffusionPipeline.from_pretrained(model_folder(n, tmp_path_factory.mktemp("model"))) for n in (4, 9)}


@pytest.fixture(params=(4, 9))
def pipe(text_pipes, request):
    return fresh(text_pipes[request.param])


def fresh(text_pipe):
    pipe = StableDiffusionInpaintPipeline.from_pipe(text_pipe)
    pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


SMALL = {"image": picture(), "mask_image": mask(), "num_inference_steps": 3, "seed": 32, "guidance_scale": 1.0, "height": 32, "width": 40}


def latents(pipe, **options):
    return pipe(PROMPT, output_type="latent", **{**SMALL, **options}).images


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["task"] == "inpaint"])
def test_same_seed_same_picture(text_pipes, name):
    with np.load(GOLDEN / "edits.npz") as golden:
        assert_same_picture(paint(text_pipes[CASES[name]["channels"]], CASES[name]), golden[name])


def test_what_is_black_stays_to_the_bit(text_pipes):
    """The known latents of a model that is guided from outside: the picture's own, drawn first."""
    pipe = fresh(text_pipes[4])
    known = pipe.encode_image(preprocess_image(read_pictures(picture()), 32, 40), Generator(32))
    left = np.zeros((66, 79), "float32")
    left[:, :40] = 1.0
    x = latents(pipe, mask_image=left)
    np.testing.assert_array_equal(x[..., 6:], known[..., 6:])
    assert np.abs(x[..., :5] - known[..., :5]).max(axis=(0, 1)).min() > 1e-3


def test_between_the_steps_what_is_known_is_under_the_noise_of_the_next_timestep(text_pipes):
    pipe = fresh(text_pipes[4])
    generator = Generator(32)
    known = pipe.encode_image(preprocess_image(read_pictures(picture()), 32, 40), generator)
    noise = generator.randn(known.shape)
    black = np.asarray(mask().resize((40, 32))) < 5
    black = black[::4, ::4]
    for step in pipe.steps(PROMPT, **SMALL):
        rest = pipe.scheduler.timesteps[step.index + 1 :]
        expected = pipe.scheduler.add_noise(known, noise, rest[0]) if len(rest) else known
        np.testing.assert_array_equal(step.latents[..., black], expected[..., black])


def test_full_strength_begins_with_pure_noise_and_less_with_the_picture(pipe):
    white, others = np.ones((66, 79), "float32"), {}
    for strength in (1.0, 0.7):
        first = [next(pipe.steps(PROMPT, **{**SMALL, "mask_image": white, "image": picture(seed=i), "strength": strength})).latents for i in (0, 1)]
        others[strength] = np.abs(first[0] - first[1]).max()
    assert others[0.7] > 1e-2
    if pipe.unet.config.in_channels == 4:  # all is repainted, from noise: the picture does not count at all
        assert others[1.0] == 0.0


def test_a_trained_model_sees_mask_and_hole_in_every_step(text_pipes, monkeypatch):
    pipe, seen = fresh(text_pipes[9]), []
    unet = type(pipe.unet).__call__
    monkeypatch.setattr(type(pipe.unet), "__call__", lambda self, x, *a: seen.append(x) or unet(self, x, *a))
    latents(pipe, guidance_scale=2.0)
    generator = Generator(32)
    generator.randn((1, 4, 8, 10))  # the noise is drawn first
    white = np.asarray(mask().resize((40, 32), 1)) >= 128
    hole = preprocess_image(read_pictures(picture()), 32, 40) * ~white
    expected = pipe.encode_image(hole, generator)
    assert len(seen) == 3
    for x in seen:
        assert x.shape == (1, 9, 8, 10)
        np.testing.assert_array_equal(x[:, 4], white[None, ::4, ::4])
        np.testing.assert_allclose(x[:, 5:], expected, atol=1e-5)


def test_given_noise_and_given_hole(text_pipes):
    pipe = fresh(text_pipes[9])
    noise, hole = Generator(1).randn((2, 1, 4, 8, 10))
    given = latents(pipe, latents=noise, masked_image_latents=hole)
    np.testing.assert_array_equal(given, latents(pipe, latents=noise, masked_image_latents=hole, image=picture(seed=1), seed=5))  # nothing else counts
    assert np.abs(given - latents(pipe, latents=noise)).max() > 1e-3


def test_latents_as_the_picture(text_pipes):
    z = Generator(1).randn((1, 4, 8, 10))
    assert latents(fresh(text_pipes[4]), image=z, mask_image=np.eye(32, 40) + 1 > 1).shape == z.shape
    with pytest.raises(UsageError, match="masked_image_latents"):
        latents(fresh(text_pipes[9]), image=z, mask_image=np.eye(32, 40) + 1 > 1)


def test_generators_are_shared_out():
    assert share([1, 2, 3], [0]) == [1] and share([1, 2, 3], [0], [0, 0]) == [1, 2] and share(7, [0]) == 7


def test_the_default_size_is_the_models(pipe):
    assert latents(pipe, height=None, width=None, strength=0.4).shape == (1, 4, 16, 16)


WRONG = {
    "no image": (dict(image=None), "needs image and mask_image"),
    "no mask": (dict(mask_image=None), "needs image and mask_image"),
    "empty mask": (dict(mask_image=np.zeros((66, 79))), "the mask is empty"),
    "narrow mask": (dict(mask_image=(np.arange(79) == 5) * np.ones((66, 1))), "too small"),
    "another shape": (dict(mask_image=mask(79, 66)), "the mask is 66×79, the picture 79×66"),
    "mask of numbers": (dict(mask_image=np.full((66, 79), 255.0)), "mask_image is an array of float64"),
    "three masks": (dict(mask_image=[mask()] * 3, prompt=["a", "b"]), "3 pictures in mask_image for a batch of 2"),
    "strength": (dict(strength=0.1), "is no step at all"),
    "both": (dict(strength=1.0, start_step=0), "either strength or start_step"),
    "latents": (dict(latents=np.zeros((1, 4, 9, 9), "float32")), "latents has the shape"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_the_unet_runs(pipe, name, monkeypatch):
    arguments, message = WRONG[name]
    monkeypatch.setattr(type(pipe.unet), "__call__", lambda *a, **k: pytest.fail("the UNet ran"))
    with pytest.raises(UsageError) as caught:
        pipe(**{"prompt": PROMPT, **SMALL, **arguments})
    assert message in str(caught.value)


def test_a_white_mask_is_allowed_and_said_to_be_one(pipe, caplog):
    with caplog.at_level(logging.WARNING, "minisd"):
        next(pipe.steps(PROMPT, **{**SMALL, "mask_image": np.ones((66, 79), bool)}))
    assert "white everywhere" in caplog.text


def test_text_to_image_does_not_take_an_inpainting_model(text_pipes):
    with pytest.raises(UsageError, match="-i and --mask"):
        text_pipes[9](PROMPT, num_inference_steps=2)
