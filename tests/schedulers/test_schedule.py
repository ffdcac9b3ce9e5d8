"""The noise schedule: tables, spacings, σ, and what a model's output means."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisd.errors import UsageError
from minisd.schedulers import schedule

DTYPES = (np.float16, np.float32, np.float64)


def sd_alphas():
    return schedule.cumulative_alphas(schedule.make_betas("scaled_linear", 0.00085, 0.012, 1000))


def test_alphas_are_accumulated_in_float64():
    """σ_max = 14.6146 as torch prints it; a float32 product ends at 14.6147."""
    betas = schedule.make_betas("scaled_linear", 0.00085, 0.012, 1000)
    alphas = schedule.cumulative_alphas(betas)
    assert (betas.dtype, alphas.dtype, alphas[0], alphas[-1]) == (np.float32, np.float32, np.float32(0.99915), np.float32(0.0046600951))
    assert round(float(schedule.noise_to_signal(alphas)[-1]), 4) == 14.6146
    naive = np.cumprod(np.float32(1) - betas, dtype=np.float32)
    assert round(float(schedule.noise_to_signal(naive)[-1]), 4) == 14.6147


def test_linspace_as_torch_meets_both_ends():
    for n in (1, 2, 3, 10, 999, 1000):
        points = schedule.linspace_as_torch(0.00085, 0.012, n)
        assert points.dtype == np.float32 and points[0] == np.float32(0.00085)
        assert points[-1] == np.float32(0.012 if n > 1 else 0.00085)
        np.testing.assert_allclose(points, np.linspace(0.00085, 0.012, n), rtol=3e-7)


def test_cosine_betas_are_capped():
    betas = schedule.make_betas("squaredcos_cap_v2", 0.1, 0.2, 1000)
    assert betas[-1] == np.float32(0.999) and betas[0] == np.float32(4.128422482e-5)


def test_trained_betas_are_taken_as_they_are():
    trained = [0.1, 0.25, 0.5]
    betas = schedule.make_betas("linear", 0.1, 0.2, 3, trained)
    assert betas.dtype == np.float32 and betas.tolist() == np.float32(trained).tolist()
    for wrong in ([0.1, 0.2], [0.1, 0.0, 0.2], [0.1, 0.2, 1.5], [0.1, math.nan, 0.2]):
        with pytest.raises(UsageError, match="β table"):
            schedule.make_betas("linear", 0.1, 0.2, 3, wrong)


def test_zero_terminal_snr_ends_in_pure_noise():
    betas = schedule.make_betas("scaled_linear", 0.00085, 0.012, 1000)
    alphas = schedule.cumulative_alphas(schedule.zero_terminal_snr(betas))
    assert alphas.dtype == np.float32 and alphas[-1] == 0
    assert math.isclose(alphas[0], schedule.cumulative_alphas(betas)[0], rel_tol=1e-6)
    assert np.all(np.diff(alphas) < 0)


@pytest.mark.parametrize(
    ("spacing", "n", "offset", "expected"),
    (
        ("leading", 5, 0, [800, 600, 400, 200, 0]),
        ("leading", 5, 1, [801, 601, 401, 201, 1]),
        ("leading", 3, 1, [667, 334, 1]),
        ("linspace", 5, 1, [999, 749.25, 499.5, 249.75, 0]),
        ("linspace", 1, 0, [0]),
        ("trailing", 5, 1, [999, 799, 599, 399, 199]),
        ("trailing", 1, 0, [999]),
        ("trailing", 3, 0, [999, 666, 332]),
    ),
)
def test_spacings(spacing, n, offset, expected):
    timesteps = schedule.space_timesteps(spacing, n, 1000, offset)
    assert timesteps.dtype == np.float64 and timesteps.tolist() == expected


@settings(deadline=None)
@given(st.sampled_from(schedule.TIMESTEP_SPACINGS), st.integers(1, 1000), st.integers(0, 999))
def test_spacings_have_n_entries_within_the_table(spacing, part, n_train):
    n_train += 1
    n = 1 + part % n_train
    timesteps = schedule.space_timesteps(spacing, n, n_train)
    assert len(timesteps) == n and timesteps[0] <= n_train - 1 and timesteps[-1] >= 0
    assert n == 1 or np.all(np.diff(np.round(timesteps)) <= -1)


@pytest.mark.parametrize("n", (61, 103, 485, 908))
def test_trailing_has_no_timestep_below_zero(n):
    """At these counts diffusers' list has one entry more, −1, and the last step goes back to noise."""
    assert len(np.arange(1000, 0, -1000 / n)) == n + 1
    timesteps = schedule.space_timesteps("trailing", n, 1000)
    assert len(timesteps) == n and timesteps[0] == 999 and timesteps[-1] == round(1000 / n) - 1


@pytest.mark.parametrize("n", (0, -1, 1001, 10**9, True, False, 2.0, math.nan, "10", None))
def test_step_counts_that_cannot_be_meant(n):
    for spacing in schedule.TIMESTEP_SPACINGS:
        with pytest.raises(UsageError, match="1 to 1000"):
            schedule.space_timesteps(spacing, n, 1000)


def test_numpy_integers_are_step_counts():
    assert len(schedule.space_timesteps("leading", np.int32(7), 1000)) == 7


def test_a_timestep_beyond_the_table_is_refused():
    """1000 steps with steps_offset 1 ask for timestep 1000; diffusers stops with an IndexError. 999 steps are the most."""
    with pytest.raises(UsageError, match="asks for timestep 1000"):
        schedule.space_timesteps("leading", 1000, 1000, 1)
    assert schedule.space_timesteps("leading", 999, 1000, 1)[[0, -1]].tolist() == [999, 1]


def test_karras_and_exponential_sigmas():
    for spread in (schedule.karras_sigmas, schedule.exponential_sigmas):
        sigmas = spread(0.03, 14.6, 7)
        assert sigmas.dtype == np.float64 and len(sigmas) == 7 and np.all(np.diff(sigmas) < 0)
        np.testing.assert_allclose(sigmas[[0, -1]], (14.6, 0.03), rtol=1e-14)
        np.testing.assert_allclose(spread(0.03, 14.6, 1), [14.6], rtol=1e-14)
    middle = ((14.6 ** (1 / 7) + 0.03 ** (1 / 7)) / 2) ** 7
    assert math.isclose(schedule.karras_sigmas(0.03, 14.6, 3)[1], middle, rel_tol=1e-14)
    assert math.isclose(schedule.exponential_sigmas(0.03, 14.6, 3)[1], math.sqrt(0.03 * 14.6), rel_tol=1e-14)


def test_timesteps_of_sigmas():
    """The entries of the table are the whole timesteps; half-way in log σ is half a timestep; outside is clipped."""
    table = schedule.noise_to_signal(sd_alphas()).astype(np.float64)
    np.testing.assert_allclose(schedule.timesteps_of(table, table), np.arange(1000), atol=1e-9)
    between = np.sqrt(table[[10, 500]] * table[[11, 501]])
    np.testing.assert_allclose(schedule.timesteps_of(between, table), [10.5, 500.5], atol=1e-9)
    assert schedule.timesteps_of(np.array([1e-6, 1e6]), table).tolist() == [0, 999]


# x and the prediction made from one x0 and ε must give them back: at any level, in both conventions.
LEVELS = [(math.sqrt(a), math.sqrt(1 - a)) for a in (0.9991, 0.5, 0.0047)] + [(1.0, s) for s in (0.0292, 1.0, 14.6)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prediction", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize(("a", "s"), LEVELS)
def test_x0_and_eps_invert_the_forward_process(a, s, prediction, dtype):
    x0, eps = (np.random.default_rng(seed).standard_normal((2, 3, 4, 5)) for seed in (0, 1))
    r = math.hypot(a, s)
    output = {"epsilon": eps, "sample": x0, "v_prediction": (a * eps - s * x0) / r}[prediction]
    x = (a * x0 + s * eps).astype(dtype)
    result = schedule.x0_and_eps(prediction, output.astype(dtype), x, a, s)
    amplification = {"epsilon": s / a + 1 / a, "sample": a / s + 1 / s, "v_prediction": 2}[prediction]
    for found, expected in zip(result, (x0, eps)):
        assert found.dtype == dtype
        assert np.abs(found - expected).max() <= 8 * (1 + amplification) * np.finfo(dtype).eps


def test_names_that_are_not_implemented():
    with pytest.raises(UsageError, match="beta_schedule = 'sigmoid'"):
        schedule.make_betas("sigmoid", 0.1, 0.2, 10)
    with pytest.raises(UsageError, match="timestep_spacing = 'quadratic'"):
        schedule.space_timesteps("quadratic", 10, 1000)
    for n in (0, -5, 2.5, True):
        with pytest.raises(UsageError, match="num_train_timesteps"):
            schedule.make_betas("linear", 0.1, 0.2, n)
