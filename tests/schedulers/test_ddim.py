"""DDIM: equations 12 and 16, clipping, thresholding, fresh noise, zero terminal SNR."""

import math

import numpy as np
import pytest

from minisd.errors import ContractError, UsageError
from minisd.rng import Generator
from minisd.schedulers import DDIMScheduler
from minisd.schedulers.ddim import ddim_step, fresh_noise, threshold

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def normal(seed, shape=(2, 4, 3, 2)):
    return np.random.default_rng(seed).standard_normal(shape)


def ready(n=10, **settings):
    scheduler = DDIMScheduler(**SD | settings)
    scheduler.set_timesteps(n)
    return scheduler


def test_equation_12():
    x0, eps, z = normal(0), normal(1), normal(2)
    expected = math.sqrt(0.7) * x0 + math.sqrt(1 - 0.7 - 0.04) * eps + 0.2 * z
    np.testing.assert_allclose(ddim_step(x0, eps, 0.7, 0.2, z), expected, rtol=1e-15)
    np.testing.assert_array_equal(ddim_step(x0, eps, 1.0), x0)


def test_equation_16_is_the_variance_of_ddpm():
    """The values of diffusers' test_variance: linear β, 1e-4 … 0.02, squared s."""
    alphas = DDIMScheduler().alphas_cumprod
    for t, t_prev, expected in ((0, 0, 0.0), (420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)):
        alpha, alpha_prev = float(alphas[t]), float(alphas[t_prev])
        assert abs(fresh_noise(alpha, alpha_prev, 1.0) ** 2 - expected) <= 1e-5
        assert fresh_noise(alpha, alpha_prev, 0.5) == 0.5 * fresh_noise(alpha, alpha_prev, 1.0)
        assert fresh_noise(alpha, alpha_prev, 0.0) == 0.0


def test_the_step_goes_to_t_minus_the_stride_not_to_the_next_timestep():
    """15 linspace steps: 999, 928, …, but the first step ends at the noise level of 999 − 66 = 933, as in diffusers."""
    scheduler = ready(15, timestep_spacing="linspace")
    assert scheduler.timesteps[:2].tolist() == [999, 928]
    x0, eps = normal(0), normal(1)
    x = scheduler.add_noise(x0, eps, 999)
    np.testing.assert_allclose(scheduler.step(eps, 999, x).prev_sample, scheduler.add_noise(x0, eps, 933), atol=1e-12)


@pytest.mark.parametrize(("set_alpha_to_one", "trace"), ((True, 0.0), (False, 0.0291551)))
def test_the_last_step_leaves_a_trace_of_noise_unless_told_otherwise(set_alpha_to_one, trace):
    scheduler = ready(set_alpha_to_one=set_alpha_to_one)
    x0, eps = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    x = scheduler.add_noise(x0, eps, 0)
    assert np.abs(scheduler.step(eps, 0, x).prev_sample - trace).max() <= 1e-7


def test_clipping():
    x, output, t = 3 * normal(0), normal(1), 500
    free, clipped = ready().step(output, t, x), ready(clip_sample=True, clip_sample_range=0.8).step(output, t, x)
    np.testing.assert_array_equal(clipped.pred_original_sample, free.pred_original_sample.clip(-0.8, 0.8))
    assert np.abs(free.pred_original_sample).max() > 0.8
    # The noise is kept as it was, or, on demand, made to fit the clipped picture.
    scheduler = ready(clip_sample=True, clip_sample_range=0.8)
    alpha, alpha_prev = scheduler.alpha(t), scheduler.alpha(t - 100)
    np.testing.assert_array_equal(clipped.prev_sample, ddim_step(clipped.pred_original_sample, output, alpha_prev))
    fitted = scheduler.step(output, t, x, use_clipped_model_output=True)
    eps = (x - math.sqrt(alpha) * fitted.pred_original_sample) / math.sqrt(1 - alpha)
    np.testing.assert_array_equal(fitted.prev_sample, ddim_step(fitted.pred_original_sample, eps, alpha_prev))


@pytest.mark.parametrize("dtype", (np.float16, np.float32, np.float64))
def test_dynamic_thresholding(dtype):
    x0 = (normal(0, (3, 2, 5, 5)) * np.array([0.1, 1.0, 10.0]).reshape(3, 1, 1, 1)).astype(dtype)
    result = threshold(x0, 0.9, 2.0)
    assert result.dtype == dtype and result.shape == x0.shape
    assert np.abs(result).max() <= 1
    np.testing.assert_array_equal(result[0], x0[0])  # a quantile below 1 counts as 1: plain clipping to ±1
    s = np.quantile(np.abs(x0[1].astype(np.float64)), 0.9)
    assert 1 < s < 2
    np.testing.assert_allclose(result[1], x0[1].astype(np.float64).clip(-s, s) / s, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(result[2], x0[2].clip(-2, 2) / dtype(2))
    scheduler = ready(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0, prediction_type="sample")
    np.testing.assert_array_equal(scheduler.step(x0, 500, x0).pred_original_sample, result)


def test_noise_is_drawn_at_every_step_from_the_generator():
    """Also at the last one, where its weight may be 0: the generator ends where torch's would."""
    scheduler, generator, twin = ready(5), Generator(3), Generator(3)
    x = normal(0).astype(np.float32)
    for t in scheduler.timesteps:
        drawn = twin.randn(x.shape)
        given = scheduler.step(x, t, x, eta=1.0, variance_noise=drawn).prev_sample
        x = scheduler.step(x, t, x, eta=1.0, generator=generator).prev_sample
        np.testing.assert_array_equal(x, given)
        assert x.dtype == np.float32
    np.testing.assert_array_equal(generator.randn((16,)), twin.randn((16,)))


def test_one_generator_an_image():
    scheduler, x = ready(), normal(0).astype(np.float32)
    batch = scheduler.step(x, 500, x, eta=0.5, generator=[Generator(1), Generator(2)]).prev_sample
    for i in range(2):
        alone = scheduler.step(x[i : i + 1], 500, x[i : i + 1], eta=0.5, generator=Generator(i + 1)).prev_sample
        np.testing.assert_array_equal(batch[i : i + 1], alone)


def test_no_noise_without_eta():
    generator = Generator(3)
    x = normal(0)
    with_generator = ready().step(x, 500, x, generator=generator).prev_sample
    np.testing.assert_array_equal(with_generator, ready().step(x, 500, x).prev_sample)
    np.testing.assert_array_equal(generator.randn((16,)), Generator(3).randn((16,)))


@pytest.mark.parametrize("eta", (-0.1, 1.1, math.nan, math.inf))
def test_eta_outside_of_0_to_1(eta):
    with pytest.raises(UsageError, match="eta"):
        ready().step(normal(0), 500, normal(1), eta=eta)


def test_noise_that_cannot_be_meant():
    x = normal(0)
    with pytest.raises(UsageError, match="both generator and variance_noise"):
        ready().step(x, 500, x, eta=1.0, generator=Generator(0), variance_noise=x)
    with pytest.raises(ContractError, match="variance_noise"):
        ready().step(x, 500, x, eta=1.0, variance_noise=x[:1])
    with pytest.raises(UsageError, match="same noise in every step"):
        ready().step(x, 500, x, eta=1.0, generator=7)


def test_velocity_is_what_a_v_model_predicts():
    scheduler = ready(prediction_type="v_prediction")
    x0, noise = normal(0), normal(1)
    for t in (0, 500, 900):
        v = scheduler.get_velocity(x0, noise, t)
        found = scheduler.step(v, t, scheduler.add_noise(x0, noise, t)).pred_original_sample
        assert np.abs(found - x0).max() <= 1e-12
    each = scheduler.get_velocity(x0, noise, [100, 900])
    np.testing.assert_array_equal(each[1:], scheduler.get_velocity(x0[1:], noise[1:], 900))


def test_zero_terminal_snr():
    """A v model starts from pure noise; an ε model cannot, and says so before the first model call."""
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = ready(prediction_type="v_prediction", **settings)
    assert scheduler.scales(scheduler.timesteps[0]) == (0.0, 1.0)
    x0, noise = normal(0), normal(1)
    x = scheduler.add_noise(x0, noise, 999)
    np.testing.assert_array_equal(x, noise)
    for eta in (0.0, 1.0):
        result = scheduler.step(-x0, 999, x, eta=eta, variance_noise=noise)
        np.testing.assert_array_equal(result.pred_original_sample, x0)
        assert np.isfinite(result.prev_sample).all()
    with pytest.raises(UsageError, match="pure noise"):
        ready(**settings)
    ready(rescale_betas_zero_snr=True, timestep_spacing="leading")
