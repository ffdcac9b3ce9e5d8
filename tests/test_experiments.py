"""One step from noise to picture, and many without a scheduler."""

import math

import numpy as np
import pytest

from minisd import Generator
from minisd.errors import UsageError
from minisd.experiments import one_shot, without_scheduler
from minisd.schedulers import SCHEDULERS

from .numerics import relative_l2


@pytest.fixture(scope="module")
def context(loaded):
    return np.concatenate((loaded.encode_prompt([""]), loaded.encode_prompt(["an apple on a blue background"])))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_shot_is_what_a_step_has_in_mind(pipe, context, name):
    """The x0 and ε of one call equal those of the run, and x = a·x0 + s·ε."""
    pipe.scheduler = SCHEDULERS[name].from_config({**pipe.scheduler.config, "skip_prk_steps": True})
    steps = pipe.steps(prompt_embeds=context[1:], negative_prompt_embeds=context[:1], num_inference_steps=4, seed=1)
    x = pipe.prepare_latents(pipe.check(prompt=""), Generator(1))
    first = next(steps)
    x0, eps = one_shot(pipe, x, context, index=0)
    np.testing.assert_array_equal(x0, first.pred_original_sample)
    by_time = one_shot(pipe, x, context, timestep=first.t)
    np.testing.assert_array_equal(x0, by_time[0])
    np.testing.assert_array_equal(eps, by_time[1])
    a, s = pipe.scheduler.scales(first.t)
    assert relative_l2(a * x0 + s * eps, x) <= 1e-5


def test_one_shot_of_a_little_noise_is_nearer_than_of_much(pipe, context):
    pipe.scheduler.set_timesteps(5)
    x0 = pipe(prompt_embeds=context[1:], negative_prompt_embeds=context[:1], num_inference_steps=5, seed=1, output_type="latent").images
    noise = Generator(2).randn(x0.shape)
    errors = [relative_l2(one_shot(pipe, pipe.scheduler.add_noise_at(x0, noise, index=i), context, index=i)[0], x0) for i in (1, 4)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("place", [{}, dict(index=0, timestep=951)])
def test_one_place_is_named_once(pipe, context, place):
    pipe.scheduler.set_timesteps(20)
    with pytest.raises(UsageError, match="either an index or a timestep"):
        one_shot(pipe, np.zeros((1, 4, 16, 16), "float32"), context, **place)


def test_without_a_scheduler_each_step_takes_the_same_share(pipe, context):
    """Two steps by hand; and the noise that is left falls."""
    pipe.scheduler.set_timesteps(2)
    x = Generator(1).randn((1, 4, 16, 16))
    first, second = without_scheduler(pipe, x, context, ratio=1.5)
    for before, after, t in ((x, first, pipe.scheduler.timesteps[0]), (first, second, pipe.scheduler.timesteps[1])):
        v = pipe.predict_noise(before, t, context, 7.5)
        a, s = pipe.scheduler.scales(t)
        np.testing.assert_allclose(after, before - 1.5 / 2 * (a * v + s * before), rtol=1e-5, atol=1e-5)


def test_every_scheduler_gives_the_same_experiment_at_the_same_timesteps(pipe, context):
    """σ enters as fractions of a variance of 1, so that an exploding scheduler gives the numbers of a preserving one."""
    results = []
    for name in ("ddim", "lms"):
        pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
        pipe.scheduler.set_timesteps(3)
        *_, x = without_scheduler(pipe, Generator(1).randn((1, 4, 16, 16)), context)
        results.append(x)
    assert relative_l2(*results) <= 1e-4 and math.isfinite(float(results[0].sum()))
