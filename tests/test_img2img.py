"""Image to image: diffusers' pictures, where a run begins, what is drawn first, and what cannot be meant."""

import numpy as np
import pytest

from minisd import Generator, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, schedulers
from minisd.errors import NumericError, UsageError
from minisd.image_input import preprocess_image, read_pictures

from .conftest import GOLDEN
from .edit_cases import CASES, PROMPT, model_folder, paint, picture
from .numerics import relative_l2
from .test_pipeline import assert_same_picture


@pytest.fixture(scope="module")
def text_pipe(tmp_path_factory):
    return StableDiffusionPipeline.from_pretrained(model_folder(4, tmp_path_factory.mktemp("model")))


@pytest.fixture
def pipe(text_pipe):
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(text_pipe)
    pipe.scheduler = schedulers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def latents(pipe, **options):
    return pipe(PROMPT, output_type="latent", **{"image": picture(34, 43), "num_inference_steps": 5, "seed": 32, "guidance_scale": 1.0, **options}).images


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["task"] == "img2img"])
def test_same_seed_same_picture(text_pipe, name):
    with np.load(GOLDEN / "edits.npz") as golden:
        assert_same_picture(paint(text_pipe, CASES[name]), golden[name])


def test_from_pipe_shares_the_parts(text_pipe, pipe):
    assert pipe.unet is text_pipe.unet and pipe.vae is text_pipe.vae and pipe.name == text_pipe.name
    assert isinstance(StableDiffusionPipeline.from_pipe(pipe), StableDiffusionPipeline)
    assert type(pipe.astype("float64")) is StableDiffusionImg2ImgPipeline and repr(pipe).startswith("StableDiffusionImg2ImgPipeline(")


def test_the_sample_is_drawn_before_the_noise(pipe):
    """x = add_noise(s·(mean + std·n₁), n₂), the two in this order from one generator."""
    generator = Generator(32)
    posterior = pipe.vae.encode(preprocess_image(read_pictures(picture()), 64, 76))
    first = pipe.vae.config.scaling_factor * posterior.sample(generator)
    noise = generator.randn(first.shape)
    seen = next(pipe.steps(PROMPT, picture(), 0.4, num_inference_steps=5, seed=32, guidance_scale=1.0))
    x = pipe.scheduler.add_noise(first, noise, pipe.scheduler.timesteps[3])
    assert seen.t == pipe.scheduler.timesteps[3]
    np.testing.assert_allclose(seen.pred_original_sample, pipe.scheduler.predict(seen.noise_pred, seen.t, x)[0], atol=1e-5)


def test_start_step_is_strength_by_another_name(pipe):
    np.testing.assert_array_equal(latents(pipe, strength=0.4), latents(pipe, start_step=3))
    steps = list(pipe.steps(PROMPT, picture(34, 43), start_step=3, num_inference_steps=5, seed=1))
    assert [step.index for step in steps] == [0, 1] and [step.t for step in steps] == [201, 1]


def test_little_strength_leaves_the_picture_and_full_strength_does_not(pipe):
    def distance(strength):
        return relative_l2(latents(pipe, num_inference_steps=10, strength=strength), pipe.encode_image(pixels, Generator(32)))

    pixels = preprocess_image(read_pictures(picture(34, 43)), 32, 40)
    assert distance(0.1) < 0.5 * distance(1.0)


def test_latents_are_not_encoded_again(pipe, monkeypatch):
    z = pipe.encode_image(preprocess_image(read_pictures(picture(34, 43)), 32, 40), Generator(1))
    monkeypatch.setattr(type(pipe.vae), "encode", lambda *a: pytest.fail("encoded"))
    assert latents(pipe, image=z, strength=0.4).shape == z.shape == (1, 4, 8, 10)


def test_sizes(pipe):
    assert latents(pipe, strength=0.2).shape == (1, 4, 8, 10)
    assert latents(pipe, strength=0.2, width=32).shape == (1, 4, 8, 8)
    assert latents(pipe, image=picture(5, 6), strength=0.2, height=32, width=32).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("name", ["lms", "pndm"])
def test_exact_weights_after_a_start_in_the_middle(pipe, name):
    """compat=False is another picture after a start in the middle, and the same one from the beginning."""
    pictures = {}
    for compat in (True, False):
        pipe.scheduler = schedulers.SCHEDULERS[name].from_config(pipe.scheduler.config, compat=compat)
        pictures[compat] = latents(pipe, start_step=2), latents(pipe, start_step=0)
    (middle, whole), (exact_middle, exact_whole) = pictures[True], pictures[False]
    np.testing.assert_array_equal(whole, exact_whole)
    assert relative_l2(middle, exact_middle) > 1e-3


WRONG = {
    "no image": (dict(image=None), "image is None"),
    "strength": (dict(strength=1.5), "strength is 1.5"),
    "nan": (dict(strength=float("nan")), "strength is nan"),
    "text": (dict(strength="much"), "strength is 'much'"),
    "no step": (dict(strength=0.1), "strength 0.1 of 5 steps is no step at all"),
    "zero": (dict(strength=0.0), "is no step at all"),
    "both": (dict(strength=0.5, start_step=1), "either strength or start_step"),
    "late start": (dict(start_step=5), "start_step is 5"),
    "early start": (dict(start_step=-1), "start_step is -1"),
    "odd size": (dict(height=66), "use 64 or 68"),
    "huge size": (dict(height=2**21), "height is 2097152"),
    "tiny picture": (dict(image=picture(3, 40)), "the picture is 40×3 pixels"),
    "three pictures": (dict(image=[picture()] * 3, prompt=["a", "b"]), "3 pictures in image for a batch of 2"),
    "seeds": (dict(seed=[1, 2]), "2 seeds for 1 picture"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_before_the_unet_runs(pipe, name, monkeypatch):
    arguments, message = WRONG[name]
    monkeypatch.setattr(type(pipe.unet), "__call__", lambda *a, **k: pytest.fail("the UNet ran"))
    with pytest.raises(UsageError) as caught:
        pipe(**{"prompt": PROMPT, "image": picture(), "num_inference_steps": 5, "seed": 32, **arguments})
    assert message in str(caught.value)


def test_runge_kutta_cannot_begin_in_the_middle(pipe):
    pipe.scheduler = schedulers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=False)
    with pytest.raises(UsageError, match="skip_prk_steps=True"):
        latents(pipe, strength=0.5)


def test_nan_in_the_encoder_names_its_layer(pipe):
    weight = pipe.vae.params.encoder.mid_block.resnets[1].conv1.weight
    kept = weight[3, 5, 1, 1]
    weight[3, 5, 1, 1] = np.nan
    try:
        with pytest.raises(NumericError) as caught:
            latents(pipe)
    finally:
        weight[3, 5, 1, 1] = kept
    assert caught.value.layer == "vae.encoder.mid_block.resnets.1.conv1"
