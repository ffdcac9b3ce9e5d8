"""LMS: exact integrals, orders, σ, and what happens when a run starts in the middle."""

import math
from fractions import Fraction

import numpy as np
import pytest

from minisd.errors import UsageError
from minisd.schedulers import LMSDiscreteScheduler
from minisd.schedulers.lms import lms_coefficients, lms_step

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def ready(n=50, **settings):
    scheduler = LMSDiscreteScheduler(**SD | settings)
    scheduler.set_timesteps(n)
    return scheduler


def exact_coefficients(sigmas, i, order):
    """The same integrals in rational numbers: the basis polynomial multiplied out and integrated term by term."""
    nodes = [Fraction(float(sigmas[i - j])) for j in range(order)]
    start, end = nodes[0], Fraction(float(sigmas[i + 1]))
    for k in range(order):
        polynomial, scale = [Fraction(1)], Fraction(1)  # coefficients, lowest power first
        for j in range(order):
            if j != k:
                shifted = [Fraction(0), *polynomial]
                polynomial = [a - nodes[j] * b for a, b in zip(shifted, [*polynomial, Fraction(0)])]
                scale *= nodes[k] - nodes[j]
        antiderivative = [c / (power + 1) / scale for power, c in enumerate(polynomial)]
        yield sum(c * (end ** (p + 1) - start ** (p + 1)) for p, c in enumerate(antiderivative))


@pytest.mark.parametrize("order", (1, 2, 3, 4))
@pytest.mark.parametrize("n", (10, 50, 1000))
def test_coefficients_are_exact_integrals(n, order):
    sigmas = ready(n).sigmas
    for i in range(order - 1, n, 1 if n <= 50 else 97):
        found, expected = lms_coefficients(sigmas, i, order), [float(c) for c in exact_coefficients(sigmas, i, order)]
        assert all(isinstance(c, float) for c in found)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1e-13 * max(map(abs, expected))


def test_coefficients_integrate_cubics_exactly():
    """A slope that is a cubic in σ is followed without error, and the weights add up to the step."""
    sigmas = ready(20).sigmas.astype(np.float64)

    def slope(s):
        return 1 - 2 * s + 0.5 * s**2 - 0.1 * s**3

    def integral(s):
        return s - s**2 + s**3 / 6 - 0.025 * s**4

    for i in range(3, 20):
        c = lms_coefficients(sigmas, i, 4)
        moved = sum(w * slope(sigmas[i - k]) for k, w in enumerate(c))
        assert math.isclose(moved, integral(sigmas[i + 1]) - integral(sigmas[i]), rel_tol=1e-10, abs_tol=1e-12)
        assert math.isclose(sum(c), sigmas[i + 1] - sigmas[i], rel_tol=1e-12)


def test_weights_that_amplify_the_models_error():
    """Step 48 of 50: the weights are twenty times the move they add up to (diffusers issue 3598)."""
    sigmas = ready().sigmas
    weights = lms_coefficients(sigmas, 48, 4)
    assert [round(w, 3) for w in weights] == [-0.462, 0.837, -0.685, 0.200]
    assert round(sum(weights), 3) == -0.110
    assert 19 <= sum(map(abs, weights)) / abs(sum(weights)) <= 21


def test_first_order_is_euler():
    scheduler = ready(10)
    x, output = (np.random.default_rng(seed).standard_normal((1, 4, 3, 2)) for seed in (0, 1))
    for i, t in enumerate(scheduler.timesteps):
        expected = x + output * (float(scheduler.sigmas[i + 1]) - float(scheduler.sigmas[i]))
        x = scheduler.step(output, t, x, order=1).prev_sample
        np.testing.assert_allclose(x, expected, atol=1e-13)
        assert len(scheduler.derivatives) == 1


def test_slopes_are_weighted_newest_first():
    slopes = [np.full((1,), v, dtype=np.float64) for v in (100.0, 10.0, 1.0)]
    assert lms_step(np.zeros((1,)), slopes, [3.0, 2.0, 1.0]).tolist() == [3 + 20 + 100]
    assert lms_step(np.zeros((1,)), slopes[2:], [3.0, 2.0, 1.0]).tolist() == [3]


def test_the_memory_holds_as_many_slopes_as_the_order():
    scheduler = ready(10)
    x = np.ones((1, 1, 2, 2))
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(x, t, x, order=3).prev_sample
        assert len(scheduler.derivatives) == min(i + 1, 3)
    scheduler.set_timesteps(10)
    assert scheduler.derivatives == []


@pytest.mark.parametrize("order", (0, 5, -1, 2.5, None))
def test_orders_that_do_not_exist(order):
    scheduler = ready(10)
    x = np.ones((1, 1, 2, 2))
    with pytest.raises(UsageError, match="order"):
        scheduler.step(x, scheduler.timesteps[0], x, order=order)


def test_the_first_scale_and_the_input():
    """σ_max, or √(σ_max² + 1) with leading timesteps; inputs are divided by √(σ² + 1)."""
    assert ready(15).init_noise_sigma == ready(15, timestep_spacing="trailing").init_noise_sigma == pytest.approx(14.614647, rel=1e-7)
    leading = ready(15, timestep_spacing="leading", steps_offset=1)
    assert leading.init_noise_sigma == math.hypot(float(leading.sigmas[0]), 1)
    x = np.ones((1, 1, 2, 2))
    for scheduler in (leading, ready(15)):
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist()):
            np.testing.assert_allclose(scheduler.scale_model_input(x, t), 1 / math.sqrt(sigma**2 + 1), rtol=1e-15)


def test_scaling_the_input_twice_or_peeking_changes_nothing():
    scheduler, plain = ready(8), ready(8)
    x = y = np.random.default_rng(0).standard_normal((1, 4, 2, 2))
    for t in scheduler.timesteps:
        for other in scheduler.timesteps:
            scheduler.scale_model_input(x, other)
        scheduler.predict(0.2 * x, t, x)
        x, y = scheduler.step(0.2 * x, t, x).prev_sample, plain.step(0.2 * y, t, y).prev_sample
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("spread", ("use_karras_sigmas", "use_exponential_sigmas"))
@pytest.mark.parametrize("spacing", ("leading", "linspace", "trailing"))
def test_other_lists_of_sigma_keep_the_ends(spread, spacing):
    settings = {"timestep_spacing": spacing, "steps_offset": 1}
    plain, other = ready(12, **settings), ready(12, **settings, **{spread: True})
    np.testing.assert_allclose(other.sigmas[[0, -2, -1]], plain.sigmas[[0, -2, -1]], rtol=3e-7)
    np.testing.assert_allclose(other.timesteps[[0, -1]], plain.timesteps[[0, -1]], atol=1e-3)
    assert np.all(np.diff(other.sigmas) < 0) and np.all(np.diff(other.timesteps) < 0)
    assert np.abs(other.sigmas[1:-2] - plain.sigmas[1:-2]).min() > 1e-4


def test_exponential_sigmas_heed_the_range_of_an_euler_config():
    settings = SD | {"sigma_min": 0.1, "sigma_max": 10.0}
    exponential = LMSDiscreteScheduler.from_config(settings, use_exponential_sigmas=True)
    karras = LMSDiscreteScheduler.from_config(settings, use_karras_sigmas=True)
    for scheduler in (exponential, karras):
        scheduler.set_timesteps(5)
    np.testing.assert_allclose(exponential.sigmas, [10, 10**0.5, 1, 10**-0.5, 0.1, 0], rtol=1e-6)
    assert karras.sigmas[0] > 14  # diffusers heeds it for exponential σ only


# ---- starting in the middle ------------------------------------------------------------------------------------------------


def run_of_point_mass(scheduler, begin):
    """All data is one point, so the model is exact: ε = (x − c)/σ. The error at the end of timesteps[begin:] of 50."""
    c, noise = 0.3, 0.7
    x = np.full((1, 1), c + noise * float(scheduler.sigmas[begin]))
    for i in range(begin, 50):
        eps = (x - c) / float(scheduler.sigmas[i])
        x = scheduler.step(eps, scheduler.timesteps[i], x).prev_sample
    return (x - c).item()


@pytest.mark.parametrize(("begin", "error"), ((45, -0.141), (40, 7.6e-3)))
def test_a_start_in_the_middle_as_in_diffusers_and_exact(begin, error):
    """50 steps at strength 0.1 and 0.2: with an exact model diffusers' weights miss the point; the right order does not."""
    assert run_of_point_mass(ready(), begin) == pytest.approx(error, rel=6e-3)
    assert abs(run_of_point_mass(ready(compat=False), begin)) <= 1e-14


def test_the_first_steps_after_a_start_in_the_middle_have_the_wrong_length():
    """From step 10 of 50 the weights of diffusers' first three steps are 2.04, 0.257 and 1.19 times the move."""
    for compat, lengths in ((True, [2.04, 0.257, 1.19, 1.0]), (False, [1.0, 1.0, 1.0, 1.0])):
        scheduler = ready(compat=compat)
        slope, x, found = np.ones((1, 1)), np.zeros((1, 1)), []
        for i in range(10, 14):
            moved = scheduler.step(slope, scheduler.timesteps[i], x).prev_sample - x
            found.append(moved.item() / float(scheduler.sigmas[i + 1] - scheduler.sigmas[i]))
        assert found == pytest.approx(lengths, rel=3e-3)


def test_compat_makes_no_difference_from_the_beginning():
    assert run_of_point_mass(ready(), 0) == run_of_point_mass(ready(compat=False), 0)
