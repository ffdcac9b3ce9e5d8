"""PNDM, pseudo numerical methods: a multistep or Runge–Kutta method whose elementary move is DDIM's.

Luping Liu et al., arXiv:2202.09778; formulas are numbered as in diffusers' `PNDMScheduler`. skip_prk_steps, which every official
Stable Diffusion config sets, is Katherine Crowson's PLMS sampler: it warms up with one improved Euler step.
"""

import math

import numpy as np

from ..errors import UsageError
from .base import SchedulerOutput, VariancePreserving
from .schedule import space_timesteps, x0_and_eps
from .settings import keeps_config

# The weight of each of the last outputs in the slope of the next step, newest first.                            formula 12
ADAMS_BASHFORTH = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
# The weight of the four slopes of one step, in order.                                                           formula 13
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def pndm_transfer(x, eps, alpha: float, alpha_prev: float):
    """x′ = √(ᾱ′/ᾱ)·x − (ᾱ′ − ᾱ)·ε / (ᾱ·√(1−ᾱ′) + √(ᾱ·(1−ᾱ)·ᾱ′)): x and ε of one shape -> the same shape.

    Formula 9: from noise level ᾱ to ᾱ′ along ε. It is DDIM's step with η = 0, rearranged so that x0 does not appear.
    """
    weight = (alpha_prev - alpha) / (alpha * math.sqrt(1 - alpha_prev) + math.sqrt(alpha * (1 - alpha) * alpha_prev))
    return math.sqrt(alpha_prev / alpha) * x - weight * eps


def adams_bashforth(outputs):
    """Σ_k w_k·e_k over the last one to four model outputs, oldest first: arrays of one shape -> the same shape."""
    return sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(outputs)], reversed(outputs)))


class PNDMScheduler(VariancePreserving):
    """PNDM with diffusers' names and defaults; prediction_type "sample" is ours (diffusers' PNDM refuses it).

    skip_prk_steps=True: the second timestep appears twice, N + 1 model calls for N steps. The first step is taken, and then taken
    again from where it began, along the mean of the slopes at its two ends; a change made to the sample in between is lost.
    skip_prk_steps=False: the first three steps are Runge–Kutta with four calls each, N + 9 in all.

    `compat`: in a run that starts in the middle (image to image) the doubled timestep has been cut off. diffusers treats the second
    call as the doubled one all the same, and the run stays one step behind its timesteps. compat=True (default) does so too;
    compat=False doubles the doubled timestep only, and takes the order from the outputs there are.
    """

    @keeps_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas=None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        compat: bool = True,
    ):
        self._warm_up = 0  # calls of Runge–Kutta
        self._common_settings()
        self.final_alpha_cumprod = self._final_alpha(set_alpha_to_one)

    def _restart(self):
        super()._restart()
        self.counter = 0  # model calls so far
        self.ets = []  # the last model outputs, oldest first
        self._start, self._slope = None, 0  # where the step in progress began, and its slope so far

    def set_timesteps(self, num_inference_steps: int):
        """Chooses the timesteps of a run, one for each model call: int64 [N + 1], or [N + 9] with Runge–Kutta steps."""
        config = self.config
        T, n = len(self), num_inference_steps
        t = np.round(space_timesteps(config.timestep_spacing, n, T, config.steps_offset)).astype(np.int64)
        if config.skip_prk_steps:
            self._warm_up = 0
            self.timesteps = np.concatenate([t[:2], t[1:]])
        else:
            if n < 4:
                raise UsageError(
                    f"num_inference_steps = {n} with skip_prk_steps = False",
                    "three Runge–Kutta steps come before the multistep method",
                    f"use 4 to {T} steps, or skip_prk_steps=True",
                )
            self._warm_up = 12
            half = T // n // 2
            calls = [(t[k], t[k + 1] + half, t[k + 1] + half, t[k + 1]) for k in range(3)]
            self.timesteps = np.concatenate([*calls, t[3:]])
        self.num_inference_steps = int(n)
        self._restart()

    def step(self, model_output, timestep, sample) -> SchedulerOutput:
        """One model call: model output and sample [B, C, H, W] at `timestep` -> the sample for the next call."""
        here = self._expect(timestep)
        if self.counter == 0:
            self._check_begin(here[0])
        if not self.config.compat:
            here = here[-1:]  # a run that begins at the doubled timestep, and does not say where, begins at the second of the two
        x0, _ = self.predict(model_output, timestep, sample)
        self._here = here
        model_output = model_output.astype(sample.dtype, copy=False)
        take = self._runge_kutta if self.counter < self._warm_up else self._multistep
        prev_sample = take(model_output, int(timestep), sample)
        self.counter += 1
        return SchedulerOutput(prev_sample, x0)

    def set_begin_index(self, begin_index: int = 0):
        self._check_begin(begin_index)
        super().set_begin_index(begin_index)

    def _check_begin(self, index: int):
        if self._warm_up and index != 0:
            raise UsageError(
                "a PNDM run with skip_prk_steps = False starts at its first timestep",
                "the Runge–Kutta steps come first",
                "for image to image use PNDMScheduler.from_config(config, skip_prk_steps=True)",
            )

    def _runge_kutta(self, output, t, x):
        """Four slopes: at the start, twice in the middle, at the end; each moves from the start, the last along their mean."""
        j = self.counter % 4
        if j == 0:
            self._start, self._slope = x, 0
            self.ets.append(output)
        self._slope = self._slope + RUNGE_KUTTA[j] * output
        half = len(self) // self.num_inference_steps // 2
        t_to = t if j % 2 else t - half
        return self._transfer(self._start, self._slope if j == 3 else output, self.timesteps[self.counter - j], t_to)

    def _multistep(self, output, t, x):
        """Along Adams–Bashforth's slope from t to t − T//N; the second call repeats the first step with a better slope."""
        ratio = len(self) // self.num_inference_steps
        doubled = self._here[0] == 1 and not self._warm_up
        if not self.config.compat and doubled and self.counter == 0:
            return x  # begun at the doubled timestep, which comes again
        if self.counter == 1 and (self.config.compat or doubled):
            return self._transfer(self._start, (self.ets[-1] + output) / 2, t + ratio, t)
        self.ets = [*self.ets[-3:], output]
        self._start = x
        return self._transfer(x, adams_bashforth(self.ets), t, t - ratio)

    def _transfer(self, x, output, t, t_to):
        """pndm_transfer for any prediction type: outputs were combined first, and become ε with the x and t of departure."""
        _, eps = x0_and_eps(self.config.prediction_type, output, x, *self.scales(t))
        return pndm_transfer(x, eps, self.alpha(t), self.alpha(t_to))
