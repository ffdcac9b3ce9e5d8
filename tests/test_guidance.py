"""Guidance by a loss on pixels: the losses' gradients, the move against the Deep Dive's own loop, and what it does to a picture."""

import numpy as np
import pytest

from minisd import DDIMScheduler, LMSDiscreteScheduler, StableDiffusionPipeline
from minisd.errors import UsageError
from minisd.guidance import blue_loss, colour_loss, gradient_of_sample, guided, loss_of_latents, thumbnail_loss, unet_in_graph
from minisd.rng import Generator, randn
from tests.tiny_folder import write_tiny_sd2
from tests.vjp.projection import arrays

MASK = np.zeros((8, 12))
MASK[2:5, 3:9] = 1.0
LOSSES = {
    "blue": blue_loss(0.9), "colour": colour_loss((0.2, None, 0.7)), "mask": colour_loss((0.2, 0.4, 0.7), MASK),
    "thumbnail": thumbnail_loss(np.linspace(0, 1, 24).reshape(2, 4, 3)),
}  # fmt: skip


@pytest.fixture(scope="module")
def sd2(tmp_path_factory):
    """A pipeline with made-up weights, in float64: 64×64 pixels, 16×16 latents."""
    return StableDiffusionPipeline.from_pretrained(write_tiny_sd2(tmp_path_factory.mktemp("sd2") / "model"), dtype="float64")


@pytest.fixture(scope="module")
def tiny():
    return StableDiffusionPipeline.from_pretrained("tiny")


# ----- the losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_a_losss_gradient_is_that_of_its_value(name):
    loss = LOSSES[name]
    pixels, v = arrays(f"pixels of {name}", (2, 8, 12, 3), (2, 8, 12, 3))
    pixels, h = 0.5 + pixels, 1e-7
    value, gradient = loss(pixels)
    slope = (loss(pixels + h * v)[0] - loss(pixels - h * v)[0]) / (2 * h)
    assert isinstance(value, float) and gradient.shape == pixels.shape and gradient.dtype == pixels.dtype
    assert abs(slope - (gradient * v).sum()) <= 1e-6 * np.linalg.norm(gradient)
    one, of_one = loss(pixels[:1])
    assert np.array_equal(of_one, gradient[:1]) and one < value, "a picture's gradient does not depend on its batch"
    assert loss(pixels.astype("float32"))[1].dtype == np.float32


def test_the_values():
    pixels = np.full((1, 8, 12, 3), 0.5)
    assert blue_loss(0.9)(pixels)[0] == pytest.approx(0.4)
    assert colour_loss((0.0, None, 0.7))(pixels)[0] == pytest.approx(0.7)
    pixels[0, 0, 0] = 0.9
    assert colour_loss((0.5, 0.5, 0.5), MASK)(pixels)[0] == 0.0, "outside the mask anything goes"
    assert thumbnail_loss(np.full((1, 1, 3), 0.5))(np.full((2, 8, 12, 3), 0.7))[0] == pytest.approx(2 * 0.04)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: colour_loss((None, None, None)), "the colour is"),
        (lambda: colour_loss((0.1, 0.2)), "the colour is"),
        (lambda: colour_loss((0.1, float("nan"), 0.2)), "the colour is"),
        (lambda: colour_loss((0.1, 0.2, 0.3), np.zeros((8, 12))), "not 0 everywhere"),
        (lambda: colour_loss((0.1, 0.2, 0.3), np.ones((8, 11)))(np.ones((1, 8, 12, 3))), "a mask of 8×11 for pictures of 8×12"),
        (lambda: thumbnail_loss(np.ones((8, 12))), r"must be \[h, w, 3\]"),
        (lambda: thumbnail_loss(np.ones((3, 4, 3)))(np.ones((1, 8, 12, 3))), "a thumbnail of 3×4 for pictures of 8×12"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()


# ----- the move --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [LMSDiscreteScheduler, DDIMScheduler])
def test_the_move_is_that_of_the_deep_dive(sd2, scheduler):
    """Its loop, spelled out: the noise is predicted, x moved by −σ² grad in the variables of σ, and the step taken from there with that noise."""
    sd2.scheduler = scheduler.from_config({**sd2.scheduler.config, "prediction_type": "epsilon", "set_alpha_to_one": True})
    loss, prompt = blue_loss(0.9), dict(prompt_embeds=sd2.encode_prompt(["a cat"]), guidance_scale=1.0)
    for step in guided(sd2.steps(**prompt, num_inference_steps=4, seed=3), sd2, loss, scale=5.0, every=2):
        pass
    other = scheduler.from_config(sd2.scheduler.config)
    other.set_timesteps(4)
    x = randn((1, 4, 16, 16), Generator(3), "float64") * other.init_noise_sigma
    for i, t in enumerate(other.timesteps):
        noise = sd2.unet(other.scale_model_input(x, t), t, prompt["prompt_embeds"])
        if i % 2 == 0:
            a, s = other.scales(t)
            _, gradient = loss_of_latents(sd2.vae, (x - s * noise) / a, loss)
            x = x - a * 5.0 * (s / a) ** 2 * gradient
        x = other.step(noise, t, x).prev_sample
    assert np.linalg.norm(step.latents - x) <= 1e-10 * np.linalg.norm(x)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [LMSDiscreteScheduler, DDIMScheduler])
@pytest.mark.parametrize("guidance", [True, False])
def test_the_gradient_through_the_unet(sd2, scheduler, kind, guidance):
    """Against central differences of the whole way: x → UNet, twice → guidance → x0 → decoder → pixels → loss."""
    sd2.scheduler = scheduler.from_config({**sd2.scheduler.config, "prediction_type": kind})
    given = dict(prompt_embeds=sd2.encode_prompt(["a cat"]), guidance_scale=1.0)
    if guidance:
        given |= dict(negative_prompt_embeds=sd2.encode_prompt([""]), guidance_scale=4.0)
    context = np.concatenate([given[k] for k in ("negative_prompt_embeds", "prompt_embeds") if k in given])
    loss = thumbnail_loss(np.linspace(0, 1, 48).reshape(4, 4, 3))
    first, step = (s for s, _ in zip(sd2.steps(**given, num_inference_steps=5, seed=3), range(2)))
    _, d_x0 = loss_of_latents(sd2.vae, step.pred_original_sample, loss)
    gradient = gradient_of_sample(sd2.scheduler, step, d_x0, unet_in_graph(sd2, **given))

    def value(x):
        noise = sd2.predict_noise(sd2.scheduler.scale_model_input(x, step.t), step.t, context, given["guidance_scale"])
        return loss_of_latents(sd2.vae, sd2.scheduler.predict(noise, step.t, x)[0], loss)[0]

    (v,) = arrays("direction", gradient.shape)
    h, x = 1e-5, first.latents
    slope = (value(x + h * v) - value(x - h * v)) / (2 * h)
    assert abs(slope - (gradient * v).sum()) <= 1e-6 * np.linalg.norm(gradient)


def test_wrong_arguments_are_refused(sd2):
    for options in (dict(every=0), dict(every=1.5), dict(scale=float("inf"))):
        with pytest.raises(UsageError, match="a whole number of steps"):
            guided((), sd2, blue_loss(), **options)


# ----- what it does to a picture ---------------------------------------------------------------------------------------------


def final(pipe, loss=None, **options):
    steps = pipe.steps("a star", num_inference_steps=8, guidance_scale=1.0, seed=1)
    for step in steps if loss is None else guided(steps, pipe, loss, **options):
        pass
    return pipe.decode_latents(step.latents)[0]


def test_the_embedded_models_picture_turns_blue(tiny):
    """Mean blue, in 0 … 1: up by a tenth or more."""
    assert final(tiny, blue_loss(0.9), scale=60.0)[..., 2].mean() >= final(tiny)[..., 2].mean() + 0.1


def test_a_mask_is_filled_with_its_colour(tiny):
    """A corner that is told to be red comes nearer to it by a tenth of the range in each channel, on average."""
    corner = np.zeros((64, 64))
    corner[:20, :20] = 1.0
    red = final(tiny, colour_loss((0.9, 0.1, 0.1), corner), scale=100.0, max_sigma=5.0)
    before, after = (np.abs(picture[:20, :20] - (0.9, 0.1, 0.1)).mean() for picture in (final(tiny), red))
    assert after <= before - 0.1


def test_a_scale_of_zero_changes_nothing(tiny):
    plain = final(tiny)
    assert np.array_equal(plain, final(tiny, blue_loss(), scale=0.0, every=4))
    assert np.array_equal(plain, final(tiny, blue_loss(), scale=60.0, max_sigma=0.0))
