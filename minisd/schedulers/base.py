"""What every sampler shares: its tables, its place in the schedule, adding noise. The settings are in `settings.py`."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import array_module, to_numpy
from ..errors import ContractError, UsageError
from .schedule import PREDICTION_TYPES, TIMESTEP_SPACINGS, cumulative_alphas, is_whole, make_betas, refuse_unknown
from .schedule import x0_and_eps, zero_terminal_snr
from .settings import Configurable


@dataclass(frozen=True)
class SchedulerOutput:
    """What `step` returns, both like `sample`."""

    prev_sample: Any  # one step nearer to the picture
    pred_original_sample: Any  # the x0 that the model sees now


class Scheduler(Configurable):
    """The part of a sampler that is no mathematics. `timesteps` are descending; `alphas_cumprod` etc. are float32 [T]."""

    order = 1  # model calls per entry of `timesteps`

    def _common_settings(self):
        """Checks the settings that all samplers have, and builds the tables."""
        config = self.config
        refuse_unknown("prediction_type", config.prediction_type, PREDICTION_TYPES)
        refuse_unknown("timestep_spacing", config.timestep_spacing, TIMESTEP_SPACINGS)
        for name in ("beta_start", "beta_end"):
            value = config[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise UsageError(f"{name} = {value!r}", "β is the variance that one timestep adds", "use a number between 0 and 1")
        if not is_whole(config.steps_offset) or config.steps_offset < 0:
            raise UsageError(f"steps_offset = {config.steps_offset!r}", "", "use 0 or 1 (Stable Diffusion)")
        T = config.num_train_timesteps
        self.betas = make_betas(config.beta_schedule, config.beta_start, config.beta_end, T, config.trained_betas)
        if config.get("rescale_betas_zero_snr"):
            self.betas = zero_terminal_snr(self.betas)
        self.alphas = np.float32(1) - self.betas
        self.alphas_cumprod = cumulative_alphas(self.betas)
        self.num_inference_steps = None
        self.timesteps = np.arange(T, dtype=np.int64)[::-1].copy()
        self._restart()

    @property
    def num_train_timesteps(self) -> int:
        return self.config.num_train_timesteps

    def __len__(self) -> int:
        return self.num_train_timesteps

    # ---- the place in the schedule ----

    def _restart(self):
        self.begin_index, self._here = None, None  # _here: the entries of `timesteps` the last step may have been at

    @property
    def step_index(self) -> int | None:
        """The index of the next step, None before the first."""
        return None if self._here is None else int(self._here[0]) + 1

    def set_begin_index(self, begin_index: int = 0):
        """Says that the run starts at `timesteps[begin_index]` (image to image). Without it the first timestep tells."""
        self.begin_index = begin_index

    def _find(self, timestep):
        """All indices of a timestep (PNDM runs some twice): int64 [1 or more]."""
        found = np.flatnonzero(self.timesteps == float(timestep))
        if not found.size:
            raise UsageError(
                f"timestep {float(timestep):g} is not in the schedule",
                f"it has {len(self.timesteps)} timesteps, {self.timesteps[0]:g} to {self.timesteps[-1]:g}; an index is not a timestep",
                "loop `for t in scheduler.timesteps` and pass t",
            )
        return found

    def _ready(self):
        if self.num_inference_steps is None:
            raise UsageError("step() before set_timesteps()", "", "call scheduler.set_timesteps(num_inference_steps) first")

    def _expect(self, timestep):
        """The indices this step may be at. A sampler that remembers takes each timestep once, in order, from wherever it starts."""
        self._ready()
        here = self._find(timestep)
        if self._here is not None:
            expected = self._here + 1
        else:
            expected = here if self.begin_index is None else np.array([self.begin_index], dtype=np.int64)
        here = np.intersect1d(here, expected)
        if not here.size:
            ahead = [f"{self.timesteps[i]:g} is next" for i in expected if i < len(self.timesteps)]
            raise UsageError(
                f"step() at timestep {float(timestep):g}, but {ahead[0] if ahead else 'the run is over'}",
                f"{type(self).__name__} remembers earlier steps, so each timestep is taken once and in order",
                "to look at x0 without stepping use predict(model_output, t, sample); to start again call set_timesteps",
            )
        return here

    # ---- x = a·x0 + s·ε ----

    def scales(self, timestep) -> tuple[float, float]:
        """a and s of x = a·x0 + s·ε at a timestep."""
        raise NotImplementedError

    def predict(self, model_output, timestep, sample):
        """x0 and ε as the model sees them at this timestep, without taking a step: two arrays like `sample`."""
        model_output = like(sample, "sample", model_output, "model_output")
        return x0_and_eps(self.config.prediction_type, model_output, sample, *self.scales(timestep))

    def scale_model_input(self, sample, timestep=None):
        """The array that the model wants to see at this timestep, like `sample`: the sample itself, except for LMS."""
        return sample

    def add_noise(self, original_samples, noise, timesteps):
        """x = a·x0 + s·ε: float [B, …] twice, one timestep or B of them -> like `original_samples`."""
        noise = like(original_samples, "original_samples", noise, "noise")
        a, s = self._scales_of_each(original_samples, timesteps)
        return a * original_samples + s * noise

    def at(self, *, index: int | None = None, timestep=None):
        """The timestep of a place that is called by its name: its index in `timesteps`, or the timestep itself.

        The two are easily confused and look alike: index 10 of a run of 15 steps is timestep 331 (PNDM) or 285.4 (LMS).
        """
        if (index is None) == (timestep is None):
            given = "neither" if index is None else "both"
            raise UsageError("give either an index or a timestep", f"{given} were given", "index=10 counts the steps, timestep=331 is noise")
        if index is None:
            return timestep
        if not is_whole(index) or not 0 <= index < len(self.timesteps):
            raise UsageError(f"index {index!r} is not in the schedule", "it counts the timesteps that are set", f"use 0 to {len(self.timesteps) - 1}")
        return self.timesteps[index].item()

    def add_noise_at(self, original_samples, noise, *, index: int | None = None, timestep=None):
        """`add_noise` at one place for all images, see `at`: float [B, …] twice -> like `original_samples`."""
        return self.add_noise(original_samples, noise, self.at(index=index, timestep=timestep))

    def _scales_of_each(self, x, timesteps):
        """a and s for one timestep as floats, for one timestep an image as arrays [B, 1, …] that broadcast over x."""
        timesteps = np.reshape(to_numpy(timesteps), -1)
        if timesteps.size == 1:
            return self.scales(timesteps[0])
        if timesteps.size != len(x):
            raise ContractError(f"{timesteps.size} timesteps for {len(x)} images", "", "pass one timestep, or one for each image")
        shape = (-1, *(1,) * (x.ndim - 1))
        pairs = [self.scales(t) for t in timesteps]
        return tuple(array_module(x).asarray(column, dtype=x.dtype).reshape(shape) for column in zip(*pairs))


class VariancePreserving(Scheduler):
    """x = √ᾱ·x0 + √(1−ᾱ)·ε at whole timesteps 0 … T−1."""

    init_noise_sigma = 1.0

    def _final_alpha(self, set_alpha_to_one: bool) -> float:
        """ᾱ of the picture itself: 1, or by official configs ᾱ_0 = 0.99915, so that a last trace of noise stays."""
        return 1.0 if set_alpha_to_one else float(self.alphas_cumprod[0])

    def alpha(self, t: int) -> float:
        """ᾱ at timestep t; before the first (t < 0) the picture's own."""
        return float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha_cumprod

    def scales(self, timestep) -> tuple[float, float]:
        """a = √ᾱ, s = √(1−ᾱ)."""
        if float(timestep) not in range(len(self)):
            raise UsageError(f"timestep {timestep} is not in the table", "", f"use a whole number from 0 to {len(self) - 1}")
        alpha = self.alpha(int(timestep))
        return math.sqrt(alpha), math.sqrt(1 - alpha)


def like(x, x_name: str, y, y_name: str):
    """y in the dtype of x, after a check that both are float arrays of one shape and one owner."""
    for name, array in ((x_name, x), (y_name, y)):
        dtype = getattr(array, "dtype", None)
        if getattr(dtype, "kind", None) != "f":
            raise ContractError(f"{name} is no float array of NumPy or CuPy", f"it is a {type(array).__name__} of {dtype}", "convert it")
    if x.shape != y.shape:
        raise ContractError(
            f"{x_name} {x.shape} and {y_name} {y.shape} differ in shape",
            "one would silently be repeated to fit the other",
            "give them one shape (with guidance: combine the two halves of the model's output first)",
        )
    array_module(x, y, names=(x_name, y_name))
    return y.astype(x.dtype, copy=False)
