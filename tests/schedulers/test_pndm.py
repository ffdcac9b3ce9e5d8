"""PNDM: its transfer is DDIM's step; multistep and Runge–Kutta weights; the doubled timestep; starting in the middle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.errors import UsageError
from minisd.schedulers import PNDMScheduler
from minisd.schedulers.ddim import ddim_step
from minisd.schedulers.pndm import ADAMS_BASHFORTH, RUNGE_KUTTA, adams_bashforth, pndm_transfer

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def ready(n=50, **settings):
    scheduler = PNDMScheduler(**SD | {"skip_prk_steps": True} | settings)
    scheduler.set_timesteps(n)
    return scheduler


@settings(deadline=None)
@given(st.floats(0.004, 0.9999), st.floats(0.004, 1.0))
def test_transfer_is_ddims_step(alpha, alpha_prev):
    x, eps = (np.random.default_rng(seed).standard_normal(20) for seed in (0, 1))
    x0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
    np.testing.assert_allclose(pndm_transfer(x, eps, alpha, alpha_prev), ddim_step(x0, eps, alpha_prev), atol=1e-9)


@pytest.mark.parametrize("order", (1, 2, 3, 4))
def test_adams_bashforth_integrates_polynomials(order):
    """Order k is exact for slopes of degree k − 1: the mean over the next step, from the values at 0, −1, −2, …"""
    assert len(ADAMS_BASHFORTH[order]) == order
    for degree in range(order):
        outputs = [np.array([float((-j) ** degree)]) for j in reversed(range(order))]  # oldest first
        assert adams_bashforth(outputs).item() == pytest.approx(1 / (degree + 1), rel=1e-14)
    assert math.isclose(sum(RUNGE_KUTTA), 1.0) and RUNGE_KUTTA[0] == RUNGE_KUTTA[3] == RUNGE_KUTTA[1] / 2 == RUNGE_KUTTA[2] / 2


def test_the_timesteps_of_both_warm_ups():
    assert ready(5).timesteps.tolist() == [801, 601, 601, 401, 201, 1]
    assert ready(5, skip_prk_steps=False).timesteps.tolist() == [801, 701, 701, 601, 601, 501, 501, 401, 401, 301, 301, 201, 201, 1]
    assert ready(1).timesteps.tolist() == [1] and ready(2).timesteps.tolist() == [501, 1, 1]
    for n in (1, 2, 3):
        with pytest.raises(UsageError, match="4 to 1000 steps"):
            ready(n, skip_prk_steps=False)


def test_the_doubled_timestep_takes_the_first_step_again():
    """Call 0: an Euler step. Call 1: the same step along the mean of both slopes, from the x of call 0; its output is forgotten."""
    scheduler = ready(10)
    t0, t1, t2 = scheduler.timesteps[[0, 1, 3]]
    x, e0, e1, e2 = (np.random.default_rng(seed).standard_normal((1, 4, 2, 2)) for seed in range(4))
    alpha = scheduler.alpha
    first = scheduler.step(e0, t0, x).prev_sample
    np.testing.assert_allclose(first, pndm_transfer(x, e0, alpha(t0), alpha(t1)), atol=1e-14)
    second = scheduler.step(e1, t1, first).prev_sample
    np.testing.assert_allclose(second, pndm_transfer(x, (e0 + e1) / 2, alpha(t0), alpha(t1)), atol=1e-14)
    third = scheduler.step(e2, t1, second).prev_sample
    np.testing.assert_allclose(third, pndm_transfer(second, 1.5 * e2 - 0.5 * e0, alpha(t1), alpha(t2)), atol=1e-14)
    assert len(scheduler.ets) == 2 and scheduler.ets[0] is e0


def test_runge_kutta_moves_from_the_start_along_the_mean():
    scheduler = ready(10, skip_prk_steps=False)
    t0, half, _, t1 = scheduler.timesteps[:4]
    assert (t0, half, t1) == (901, 851, 801)
    x, *e = (np.random.default_rng(seed).standard_normal((1, 4, 2, 2)) for seed in range(5))
    alpha = scheduler.alpha
    slopes = (e[0], e[1], e[2], (e[0] + 2 * e[1] + 2 * e[2] + e[3]) / 6)
    for output, slope, t, to in zip(e, slopes, (t0, half, half, t1), (half, half, t1, t1)):
        result = scheduler.step(output, t, np.zeros_like(x) if t != t0 else x).prev_sample  # only the first x counts
        np.testing.assert_allclose(result, pndm_transfer(x, slope, alpha(t0), alpha(to)), atol=1e-14)
    assert len(scheduler.ets) == 1 and scheduler.ets[0] is e[0]


def test_the_memory_is_four_outputs():
    for skip in (True, False):
        scheduler = ready(10, skip_prk_steps=skip)
        x = np.ones((1, 1, 2, 2))
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * x, t, x).prev_sample
        assert len(scheduler.ets) == 4 and scheduler.counter == len(scheduler.timesteps)
        scheduler.set_timesteps(10)
        assert scheduler.ets == [] and scheduler.counter == 0


@pytest.mark.parametrize("prediction", ("v_prediction", "sample"))
def test_outputs_are_combined_before_they_become_noise(prediction):
    """diffusers' order for v, and ours for x0 predictions: Adams–Bashforth of v, then ε from it and the present x."""
    scheduler = ready(10, prediction_type=prediction)
    x, *outputs = (np.random.default_rng(seed).standard_normal((1, 4, 2, 2)) for seed in range(5))
    for output, t in zip(outputs[:3], scheduler.timesteps):
        y = x
        x = scheduler.step(output, t, x).prev_sample
    t = scheduler.timesteps[2]
    a, s = scheduler.scales(t)
    combined = 1.5 * outputs[2] - 0.5 * outputs[0]
    eps = a * combined + s * y if prediction == "v_prediction" else (y - a * combined) / s
    np.testing.assert_allclose(x, pndm_transfer(y, eps, scheduler.alpha(t), scheduler.alpha(t - 100)), atol=1e-13)


@pytest.mark.parametrize(("set_alpha_to_one", "final"), ((True, 1.0), (False, 0.9991499781608582)))
def test_the_last_noise_level(set_alpha_to_one, final):
    assert ready(set_alpha_to_one=set_alpha_to_one).final_alpha_cumprod == final


def run_of_point_mass(scheduler, begin):
    """All data is one point, so the model is exact. The error at the end of timesteps[begin:]."""
    c, noise = 0.3, 0.7
    x = scheduler.add_noise(np.full((1, 1), c), np.full((1, 1), noise), scheduler.timesteps[begin])
    for t in scheduler.timesteps[begin:]:
        a, s = scheduler.scales(t)
        x = scheduler.step((x - a * c) / s, t, x).prev_sample
    return (x - c).item()


def test_a_start_in_the_middle_is_one_step_behind_as_in_diffusers():
    """The doubled timestep has been cut off, the second call is treated as doubled all the same: an error of 4.4e-4, not 0."""
    assert abs(run_of_point_mass(ready(set_alpha_to_one=True), 0)) <= 1e-14
    assert run_of_point_mass(ready(set_alpha_to_one=True), 40) == pytest.approx(-4.47e-4, rel=1e-3)
    assert run_of_point_mass(ready(set_alpha_to_one=True), 45) == pytest.approx(1.267e-2, rel=1e-3)


@pytest.mark.parametrize("begin", (0, 1, 2, 3, 10, 40, 49, 50))
def test_an_exact_start_in_the_middle(begin):
    """compat=False: wherever a run begins, also at either of the two doubled timesteps, an exact model is followed to the point."""
    scheduler = ready(set_alpha_to_one=True, compat=False)
    scheduler.set_begin_index(begin)
    assert abs(run_of_point_mass(scheduler, begin)) <= 1e-14
    assert scheduler.counter == 51 - begin


def test_compat_makes_no_difference_from_the_beginning():
    assert run_of_point_mass(ready(), 0) == run_of_point_mass(ready(compat=False), 0)


def test_an_exact_start_takes_the_order_from_the_outputs_there_are():
    """From index 10: Euler, then Adams–Bashforth of order 2, 3 and 4, one timestep at a time."""
    scheduler = ready(50, compat=False)
    x, *outputs = (np.random.default_rng(seed).standard_normal((1, 4, 2, 2)) for seed in range(6))
    for k, t in enumerate(scheduler.timesteps[10:15]):
        expected = pndm_transfer(x, adams_bashforth(outputs[max(0, k - 3) : k + 1]), scheduler.alpha(t), scheduler.alpha(t - 20))
        x = scheduler.step(outputs[k], t, x).prev_sample
        np.testing.assert_allclose(x, expected, atol=1e-13)


def test_an_exact_start_at_the_doubled_timestep_that_does_not_say_where_is_at_the_second():
    scheduler = ready(10, compat=False)
    x = np.ones((1, 1, 2, 2))
    scheduler.step(x, 801, x)
    with pytest.raises(UsageError, match="701 is next"):
        scheduler.step(x, 801, x)


@pytest.mark.parametrize("begin", (1, 2))
def test_a_start_at_the_doubled_timestep(begin):
    """Index 1 is run twice, index 2 once; both are the same timestep, and both are followed to the end."""
    scheduler = ready(10)
    x = np.ones((1, 1, 2, 2))
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    assert scheduler.counter == 11 - begin
    with pytest.raises(UsageError, match="the run is over"):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_a_run_with_runge_kutta_steps_starts_at_the_first():
    scheduler = ready(10, skip_prk_steps=False)
    x = np.ones((1, 1, 2, 2))
    for wrong in (801, 1):
        with pytest.raises(UsageError, match="first timestep"):
            scheduler.step(x, wrong, x)
    with pytest.raises(UsageError, match="first timestep"):
        scheduler.set_begin_index(1)
    scheduler.set_begin_index(0)
    scheduler.step(x, 901, x)
