"""Frames: x on the left, x0 on the right, each what the decoder or the preview makes of it."""

import numpy as np
import pytest

from minisd import Generator
from minisd.errors import UsageError
from minisd.schedulers import SCHEDULERS
from minisd.viz import fit_preview, frames, noise_levels
from minisd.viz.frames import as_seen

PROMPT = "a cat on a blue background"


def steps_of(pipe, scheduler: str, n: int = 3) -> list:
    pipe.scheduler = SCHEDULERS[scheduler].from_config({**pipe.scheduler.config, "skip_prk_steps": True})
    return list(pipe.steps(PROMPT, num_inference_steps=n, seed=1, height=32, width=32))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_frame_shows_where_the_run_stands_and_what_it_has_in_mind(pipe, scheduler):
    steps = steps_of(pipe, scheduler)
    shown = frames(pipe, steps)
    assert len(shown) == len(pipe.scheduler.timesteps)
    for image, step in zip(shown, steps):
        assert image.size == (64, 32)
        left, right = image.crop((0, 0, 32, 32)), image.crop((32, 0, 64, 32))
        np.testing.assert_array_equal(np.asarray(left), np.asarray(pipe.to_images(as_seen(pipe.scheduler, step))[0]))
        np.testing.assert_array_equal(np.asarray(right), np.asarray(pipe.to_images(step.pred_original_sample)[0]))
    np.testing.assert_array_equal(np.asarray(shown[-1])[:, :32], np.asarray(pipe.to_images(steps[-1].latents)[0]))


def test_exploding_latents_are_shown_at_the_variance_of_the_unet(pipe):
    steps = steps_of(pipe, "lms", n=6)
    sigmas = pipe.scheduler.sigmas
    for i, step in enumerate(steps):
        np.testing.assert_allclose(as_seen(pipe.scheduler, step), step.latents / np.sqrt(sigmas[i + 1] ** 2 + 1), rtol=1e-6)
    assert steps[0].latents.std() > 3 and 0.5 < as_seen(pipe.scheduler, steps[0]).std() < 1.5


def test_steps_of_another_schedule_are_refused(pipe):
    steps = steps_of(pipe, "lms")
    pipe.scheduler.set_timesteps(7)
    with pytest.raises(UsageError, match="set for another run"):
        frames(pipe, steps[1:])


def test_previews_need_no_decoder(pipe, monkeypatch):
    steps, preview = steps_of(pipe, "ddim"), fit_preview(pipe.vae)
    monkeypatch.setattr(pipe, "decode_latents", lambda x: pytest.fail("decoded"))
    image = frames(pipe, steps, preview)[1]
    assert image.size == (64, 32)
    np.testing.assert_array_equal(np.asarray(image)[:, 32:], np.asarray(preview(steps[1].pred_original_sample, 4)[0]))


def test_a_batch_has_a_row_for_each_picture(pipe):
    pipe.scheduler = SCHEDULERS["ddim"].from_config(pipe.scheduler.config)
    steps = list(pipe.steps([PROMPT, "a dog on a red background"], num_inference_steps=2, seed=[1, 2], height=32, width=32))
    [first, _] = frames(pipe, steps, fit_preview(pipe.vae))
    assert first.size == (64, 64)


def test_noise_levels_show_what_add_noise_gives(pipe):
    pipe.scheduler = SCHEDULERS["lms"].from_config(pipe.scheduler.config)
    x0 = pipe(PROMPT, num_inference_steps=8, seed=1, output_type="latent").images  # a finished picture is smooth
    pipe.scheduler.set_timesteps(5)
    noise = Generator(3).randn((1, 4, 16, 16))
    sheet = noise_levels(pipe, x0, noise, [0, 4], columns=2)
    scheduler = pipe.scheduler
    t = scheduler.timesteps[4]
    expected = pipe.to_images(scheduler.scale_model_input(scheduler.add_noise(x0, noise, t), t))[0]
    cell = (sheet.width - 4) // 2  # two captioned cells and a gap of 4
    shown = np.asarray(sheet)[-128:, cell + 4 :][:, :128]
    np.testing.assert_array_equal(shown, np.asarray(expected).repeat(2, axis=0).repeat(2, axis=1))
    noisy = np.asarray(sheet)[-128:, :128].astype(int)
    assert np.abs(np.diff(noisy, axis=0)).mean() > 1.5 * np.abs(np.diff(shown.astype(int), axis=0)).mean()
