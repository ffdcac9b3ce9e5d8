"""DDIM, denoising diffusion implicit models: predict the picture, then take away noise until the next level is reached.

Jiaming Song et al., arXiv:2010.02502, eq. 12 and 16. diffusers `DDIMScheduler`.
"""

import math

import numpy as np

from ..backend import array_module
from ..errors import UsageError
from .base import SchedulerOutput, VariancePreserving, like
from .schedule import space_timesteps
from .settings import keeps_config


def ddim_step(x0, eps, alpha_prev: float, s: float = 0.0, noise=None):
    """x′ = √ᾱ′·x0 + √(1 − ᾱ′ − s²)·ε + s·z: arrays of one shape -> the same shape.                            eq. 12

    ᾱ′ = alpha_prev is the level to reach; s is the part of its noise that is drawn fresh (z), 0 for none.
    """
    direction = math.sqrt(max(1 - alpha_prev - s**2, 0.0))  # rounding may leave −1e-17 where nothing is left
    x = math.sqrt(alpha_prev) * x0 + direction * eps
    return x if noise is None else x + s * noise


def fresh_noise(alpha: float, alpha_prev: float, eta: float) -> float:
    """s = η·√((1−ᾱ′)/(1−ᾱ)·(1 − ᾱ/ᾱ′)): η = 0 is DDIM, η = 1 has the variance of DDPM.                        eq. 16"""
    return eta * math.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))


def threshold(x0, ratio: float, max_value: float):
    """x0 clipped to ±s and divided by s, s = the quantile `ratio` of |x0| in each image, within 1 … max_value: like x0.

    Dynamic thresholding, arXiv:2205.11487 section 2.3; for models of pixels, not of latents.
    """
    xp = array_module(x0)
    flat = x0.reshape(len(x0), -1).astype(xp.promote_types(x0.dtype, xp.float32))
    s = xp.quantile(abs(flat), ratio, axis=1, keepdims=True).clip(1.0, None).clip(None, max_value).astype(flat.dtype)
    return (flat.clip(-s, s) / s).reshape(x0.shape).astype(x0.dtype)


class DDIMScheduler(VariancePreserving):
    """DDIM with diffusers' names and defaults. It remembers nothing: any timestep of the schedule may be taken at any time.

    Note the default clip_sample=True, meant for pixels in −1…1: official Stable Diffusion configs set it to False.
    """

    @keeps_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas=None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ):
        self._common_settings()
        self.final_alpha_cumprod = self._final_alpha(set_alpha_to_one)

    def set_timesteps(self, num_inference_steps: int):
        """Chooses the timesteps of a run: int64 [num_inference_steps], descending."""
        config = self.config
        timesteps = space_timesteps(config.timestep_spacing, num_inference_steps, len(self), config.steps_offset)
        self.timesteps = np.round(timesteps).astype(np.int64)
        self.num_inference_steps = int(num_inference_steps)
        self._restart()
        if config.prediction_type == "epsilon" and self.alpha(self.timesteps[0]) == 0:
            raise UsageError(
                f"timestep {self.timesteps[0]} is pure noise (rescale_betas_zero_snr), where ε says nothing about the picture",
                "x0 = (x − √(1−ᾱ)·ε)/√ᾱ divides by zero",
                "use prediction_type='v_prediction', which such models are trained for, or timestep_spacing='leading'",
            )

    def step(
        self,
        model_output,
        timestep,
        sample,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator=None,
        variance_noise=None,
    ) -> SchedulerOutput:
        """One step: model output and sample [B, C, H, W] at `timestep` -> the sample T//N timesteps nearer to the picture.

        eta 0…1 mixes in fresh noise: `variance_noise`, else drawn from `generator` (at the last step too, where it has no weight).
        """
        if not 0 <= eta <= 1:
            raise UsageError(f"eta = {eta}", "it is the part of the noise that is drawn fresh", "use 0 (DDIM) to 1 (DDPM)")
        if eta > 0 and generator is not None and variance_noise is not None:
            raise UsageError("both generator and variance_noise", "the noise is drawn or given, not both", "pass one of them")
        self._ready()
        self._find(timestep)
        t = int(timestep)
        # T//N before t, which is not the next entry of `timesteps` when N does not divide T or the spacing is not "leading".
        alpha, alpha_prev = self.alpha(t), self.alpha(t - len(self) // self.num_inference_steps)

        x0, eps = self.predict(model_output, t, sample)
        if self.config.thresholding:
            x0 = threshold(x0, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        elif self.config.clip_sample:
            x0 = x0.clip(-self.config.clip_sample_range, self.config.clip_sample_range)
        if use_clipped_model_output:  # the noise that belongs to the clipped x0
            eps = (sample - math.sqrt(alpha) * x0) / math.sqrt(1 - alpha)

        s = fresh_noise(alpha, alpha_prev, eta)
        noise = None
        if eta > 0:
            noise = draw(sample, generator) if variance_noise is None else like(sample, "sample", variance_noise, "variance_noise")
        return SchedulerOutput(ddim_step(x0, eps, alpha_prev, s, noise), x0)

    def get_velocity(self, sample, noise, timesteps):
        """v = √ᾱ·ε − √(1−ᾱ)·x0, what a v-prediction model is trained on: like `sample` (the clean one).  arXiv:2202.00512"""
        noise = like(sample, "sample", noise, "noise")
        a, s = self._scales_of_each(sample, timesteps)
        return a * noise - s * sample


def draw(sample, generator):
    """Standard normal noise like `sample`, the next in the generator's stream (None: fresh noise, different in every run)."""
    from ..rng import randn

    if isinstance(generator, int):
        raise UsageError(f"generator = {generator}", "a seed would draw the same noise in every step", "pass minisd.Generator(seed)")
    return array_module(sample).asarray(randn(sample.shape, generator, sample.dtype))
