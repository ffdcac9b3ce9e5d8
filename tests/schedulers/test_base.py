"""What all samplers share: the place in the schedule, adding noise, dtypes, and errors that help."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.errors import ContractError, UsageError
from minisd.schedulers import DDIMScheduler, LMSDiscreteScheduler, PNDMScheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SAMPLERS = {
    "ddim": lambda **kw: DDIMScheduler(clip_sample=False, **SD | kw),
    "lms": lambda **kw: LMSDiscreteScheduler(**SD | kw),
    "pndm": lambda **kw: PNDMScheduler(skip_prk_steps=True, **SD | kw),
    "pndm with Runge-Kutta": lambda **kw: PNDMScheduler(**SD | kw),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def ready(sampler, n=10, **settings):
    scheduler = SAMPLERS[sampler](**settings)
    scheduler.set_timesteps(n)
    return scheduler


def normal(seed, shape=(2, 4, 3, 2), dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def perfect_output(scheduler, x0, noise, t):
    """What a perfect model says about a·x0 + s·noise."""
    a, s = scheduler.scales(t)
    r = math.hypot(a, s)
    return {"epsilon": noise, "sample": x0, "v_prediction": (a * noise - s * x0) / r}[scheduler.config.prediction_type]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(SAMPLERS)), st.sampled_from(PREDICTIONS), st.sampled_from(("leading", "linspace", "trailing")), st.data())
def test_a_step_with_the_exact_noise_sees_the_picture(sampler, prediction, spacing, data):
    """add_noise at any timestep, then step with what a perfect model says: pred_original_sample is x0."""
    scheduler = ready(sampler, data.draw(st.integers(4, 60), "steps"), prediction_type=prediction, timestep_spacing=spacing)
    i = 0 if "Runge" in sampler else data.draw(st.integers(0, len(scheduler.timesteps) - 1), "index")
    t = scheduler.timesteps[i]
    x0, noise = normal(0), normal(1)
    x = scheduler.add_noise(x0, noise, t)
    result = scheduler.step(perfect_output(scheduler, x0, noise, t), t, x)
    assert np.abs(result.pred_original_sample - x0).max() <= 1e-11
    found = scheduler.predict(perfect_output(scheduler, x0, noise, t), t, x)
    assert np.abs(found[0] - x0).max() <= 1e-11 and np.abs(found[1] - noise).max() <= 1e-11


# PNDM combines outputs before it makes noise of them, and only the noise is the same at all timesteps.
EXACT = [(s, p) for s in SAMPLERS for p in PREDICTIONS if p == "epsilon" or not s.startswith("pndm")]


@pytest.mark.parametrize(("sampler", "prediction"), EXACT)
def test_a_perfect_model_is_followed_to_the_picture(sampler, prediction):
    """If the noise never changes every method is exact: the end is x0 plus the trace of noise that the schedule leaves."""
    scheduler = ready(sampler, 20, prediction_type=prediction, steps_offset=1, timestep_spacing="leading")
    x0, noise = normal(0), normal(1)
    x = scheduler.add_noise(x0, noise, scheduler.timesteps[0])
    for t in scheduler.timesteps:
        a, s = scheduler.scales(t)
        output = perfect_output(scheduler, (x - s * noise) / a, noise, t)
        x = scheduler.step(output, t, x).prev_sample
    final = getattr(scheduler, "final_alpha_cumprod", 1.0)
    assert np.abs(x - math.sqrt(final) * x0 - math.sqrt(1 - final) * noise).max() <= 1e-11


@every_sampler
@pytest.mark.parametrize("dtype", (np.float16, np.float32, np.float64))
def test_dtype_is_kept(sampler, dtype):
    """Sample, x0, noisy pictures, model inputs and the whole memory stay in the dtype of the sample."""
    for prediction in PREDICTIONS:
        scheduler = ready(sampler, 6, prediction_type=prediction)
        x = normal(0, dtype=dtype) * scheduler.init_noise_sigma
        assert x.dtype == dtype
        for t in scheduler.timesteps:
            assert scheduler.scale_model_input(x, t).dtype == dtype
            result = scheduler.step(normal(1, dtype=np.float32), t, x)
            x = result.prev_sample
            assert x.dtype == result.pred_original_sample.dtype == dtype and np.isfinite(x).all()
        for name in ("derivatives", "ets"):
            assert all(array.dtype == dtype for array in getattr(scheduler, name, []))
        for timesteps in (scheduler.timesteps[0], scheduler.timesteps[[0, 1]]):
            assert scheduler.add_noise(x, x, timesteps).dtype == dtype


@every_sampler
def test_noise_for_each_image_at_its_own_timestep(sampler):
    scheduler = ready(sampler)
    x0, noise = normal(0), normal(1)
    t = scheduler.timesteps[[0, 5]]
    both = scheduler.add_noise(x0, noise, t)
    for i in range(2):
        alone = scheduler.add_noise(x0[i : i + 1], noise[i : i + 1], t[i])
        np.testing.assert_array_equal(both[i : i + 1], alone)
    with pytest.raises(ContractError, match="3 timesteps for 2 images"):
        scheduler.add_noise(x0, noise, scheduler.timesteps[:3])


@every_sampler
def test_length_and_tables(sampler):
    scheduler = SAMPLERS[sampler](num_train_timesteps=77)
    assert len(scheduler) == scheduler.num_train_timesteps == 77 and scheduler.order == 1
    for table in ("betas", "alphas", "alphas_cumprod"):
        assert getattr(scheduler, table).shape == (77,) and getattr(scheduler, table).dtype == np.float32
    assert scheduler.timesteps.tolist() == list(range(76, -1, -1)) and scheduler.num_inference_steps is None


# ---- errors ----------------------------------------------------------------------------------------------------------------


@every_sampler
def test_step_needs_timesteps(sampler):
    with pytest.raises(UsageError, match="set_timesteps"):
        SAMPLERS[sampler]().step(normal(0), 10, normal(1))


@every_sampler
@pytest.mark.parametrize("n", (0, -1, 1001, True, 10.0, math.nan, None))
def test_step_counts_that_cannot_be_meant(sampler, n):
    with pytest.raises(UsageError, match="1 to 1000"):
        ready(sampler, n)


@every_sampler
@pytest.mark.parametrize("n", (4, 999, 1000))
def test_the_smallest_and_largest_step_counts(sampler, n):
    scheduler = ready(sampler, n)
    extra = {"pndm": 1, "pndm with Runge-Kutta": 9}.get(sampler, 0)
    assert len(scheduler.timesteps) == n + extra
    with pytest.raises(UsageError, match="asks for timestep 1000"):
        ready(sampler, 1000, steps_offset=1, timestep_spacing="leading")
    assert len(ready(sampler, 999, steps_offset=1, timestep_spacing="leading").timesteps) == 999 + extra


@every_sampler
def test_an_index_is_not_a_timestep(sampler):
    """A famous notebook passes the index 40; diffusers then removes the wrong amount of noise without a word."""
    scheduler = ready(sampler, 50, steps_offset=1)
    for wrong in (40, 40.25, 1234, -1, math.nan):
        with pytest.raises(UsageError, match="is not in the schedule"):
            scheduler.step(normal(0), wrong, normal(1))


@pytest.mark.parametrize("sampler, t", [("ddim", 265), ("pndm", 331), ("lms", 285.4285583496094)])
def test_a_place_is_called_by_its_index_or_by_its_timestep(sampler, t):
    """Index 10 of 15 steps: PNDM runs its second timestep twice, so that everything behind it is one place later."""
    scheduler = ready(sampler, 15, steps_offset=1)
    x, noise = normal(0), normal(1)
    assert scheduler.at(index=10) == scheduler.at(timestep=t) == t
    np.testing.assert_array_equal(scheduler.add_noise_at(x, noise, index=10), scheduler.add_noise(x, noise, t))
    np.testing.assert_array_equal(scheduler.add_noise_at(x, noise, timestep=t), scheduler.add_noise(x, noise, t))


@every_sampler
def test_a_place_that_cannot_be_meant(sampler):
    scheduler = ready(sampler, 15)
    for place in ({}, {"index": 1, "timestep": 925}):
        with pytest.raises(UsageError, match="either an index or a timestep"):
            scheduler.at(**place)
    for index in (-1, len(scheduler.timesteps), 2.0, True):
        with pytest.raises(UsageError, match="is not in the schedule"):
            scheduler.at(index=index)


@pytest.mark.parametrize("sampler", ("lms", "pndm", "pndm with Runge-Kutta"))
def test_a_sampler_that_remembers_takes_each_timestep_once(sampler):
    """Twice, skipped, or beyond the end; after the error the run goes on as if it had not happened."""
    scheduler, undisturbed = ready(sampler, 6), ready(sampler, 6)
    x = y = normal(0)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(0.3 * x, t, x).prev_sample
        y = undisturbed.step(0.3 * y, t, y).prev_sample
        following = scheduler.timesteps[i + 1] if i + 1 < len(scheduler.timesteps) else None
        for wrong in {float(t), float(scheduler.timesteps[0])} - {None if following is None else float(following)}:
            reason = "the run is over" if following is None else f"{following:g} is next"
            with pytest.raises(UsageError, match=reason) as error:
                scheduler.step(0.3 * x, wrong, x)
            assert "predict(" in error.value.fix and "set_timesteps" in error.value.fix
    np.testing.assert_array_equal(x, y)
    scheduler.set_timesteps(6)
    scheduler.step(0.3 * x, scheduler.timesteps[0], x)


def test_ddim_may_take_a_timestep_twice():
    scheduler = ready("ddim")
    x = normal(0)
    first, second = (scheduler.step(x, scheduler.timesteps[3], x).prev_sample for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("sampler", ("lms", "pndm"))
def test_the_start_of_a_run_is_found_or_told(sampler):
    scheduler = ready(sampler)
    x, t = normal(0), scheduler.timesteps[4]
    scheduler.step(x, t, x)
    assert scheduler.step_index == 5
    scheduler.set_timesteps(10)
    assert scheduler.step_index is None and scheduler.begin_index is None
    scheduler.set_begin_index(4)
    with pytest.raises(UsageError, match=f"{t:g} is next"):
        scheduler.step(x, scheduler.timesteps[5], x)
    scheduler.step(x, t, x)
    assert scheduler.step_index == 5


@every_sampler
def test_arrays_that_do_not_belong_together(sampler):
    scheduler = ready(sampler)
    t, x = scheduler.timesteps[0], normal(0)
    with pytest.raises(ContractError, match="differ in shape") as error:
        scheduler.step(np.concatenate([x, x]), t, x)  # guidance forgotten: (4, …) would be broadcast from (1, …)
    assert "guidance" in error.value.fix
    with pytest.raises(ContractError, match="differ in shape"):
        scheduler.add_noise(x, x[:1], t)
    for wrong in (x.astype(np.int64), x.tolist(), 1.0):
        with pytest.raises(ContractError, match="sample is no float array"):
            scheduler.step(x, t, wrong)
        with pytest.raises(ContractError, match="model_output is no float array"):
            scheduler.step(wrong, t, x)


@pytest.mark.parametrize("timestep", (-1, 1000, 3.5))
def test_noise_only_at_timesteps_of_the_table(timestep):
    for sampler in ("ddim", "pndm"):
        with pytest.raises(UsageError, match="not in the table"):
            ready(sampler).add_noise(normal(0), normal(1), timestep)
    with pytest.raises(UsageError, match="not in the schedule"):
        ready("lms").add_noise(normal(0), normal(1), timestep)
