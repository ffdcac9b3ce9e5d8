"""LMS, linear multistep: through the last four slopes runs one polynomial, and the step is its exact integral.

Katherine Crowson's k-diffusion `sample_lms`, after the Adams–Bashforth method; the ODE is arXiv:2206.00364 eq. 1: in the
variables of `schedule.py` dx/dσ = (x − x0)/σ = ε. diffusers `LMSDiscreteScheduler`.
"""

import math

import numpy as np

from ..errors import UsageError
from .base import Scheduler, SchedulerOutput
from .schedule import exponential_sigmas, karras_sigmas, noise_to_signal, space_timesteps, timesteps_of
from .settings import keeps_config


def lms_coefficients(sigmas, i: int, order: int) -> list[float]:
    """The weight of each of the last `order` slopes in the step from σ_i to σ_{i+1}, newest first.

    c_k = ∫ ℓ_k(τ) dτ from σ_i to σ_{i+1},   ℓ_k(τ) = Π_{j≠k} (τ − σ_{i−j}) / (σ_{i−k} − σ_{i−j}),   j, k = 0 … order−1

    ℓ_k is a polynomial of degree order−1 ≤ 3, and Simpson's rule is exact for cubics: no quadrature is needed.
    """
    nodes = [float(sigmas[i - j]) for j in range(order)]
    start, end = nodes[0], float(sigmas[i + 1])

    def basis(k, tau):
        return math.prod((tau - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k)

    def integral(k):
        return (end - start) / 6 * (basis(k, start) + 4 * basis(k, (start + end) / 2) + basis(k, end))

    return [integral(k) for k in range(order)]


def lms_step(x, slopes, coefficients):
    """x′ = x + Σ_k c_k·d_k: x like each slope d, slopes oldest first, coefficients newest first -> like x."""
    return x + sum(c * d for c, d in zip(coefficients, reversed(slopes)))


class LMSDiscreteScheduler(Scheduler):
    """LMS with diffusers' names and defaults. Timesteps are fractional (float32) and go to the model as they are.

    `compat`: a run that starts in the middle of the schedule (image to image) has few slopes at first. diffusers takes the
    weights of order min(index + 1, 4) all the same and drops those without a slope, so the first steps have the wrong length:
    from step 10 of 50 they are 2.04, 0.26 and 1.19 times as long as they should be. compat=True (default) does so too;
    compat=False takes the order from the slopes there are.
    """

    @keeps_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas=None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        compat: bool = True,
    ):
        self._common_settings()
        if use_beta_sigmas:
            raise UsageError(
                "use_beta_sigmas = True is not implemented",
                "it needs the inverse of the beta distribution, that is SciPy",
                "use use_karras_sigmas=True or use_exponential_sigmas=True",
            )
        if use_karras_sigmas and use_exponential_sigmas:
            raise UsageError("both use_karras_sigmas and use_exponential_sigmas", "a run has one list of σ", "set one of them")
        self._table = noise_to_signal(self.alphas_cumprod)
        self.timesteps = self.timesteps.astype(np.float32)
        self.sigmas = np.append(self._table[::-1], np.float32(0))

    def _restart(self):
        super()._restart()
        self.derivatives = []  # the last slopes, oldest first

    def set_timesteps(self, num_inference_steps: int):
        """Chooses timesteps, float32 [N], and sigmas, float32 [N + 1] ending with 0, both descending."""
        config = self.config
        n = num_inference_steps
        timesteps = space_timesteps(config.timestep_spacing, n, len(self), config.steps_offset).astype(np.float32)
        sigmas = np.interp(timesteps, np.arange(len(self), dtype=np.float64), self._table)
        low, high = float(sigmas[-1]), float(sigmas[0])
        if config.use_karras_sigmas:
            sigmas = karras_sigmas(low, high, n)
            timesteps = timesteps_of(sigmas, self._table)
        elif config.use_exponential_sigmas:
            # Not settings of this class, but diffusers heeds them here when the config of an Euler sampler brings them along.
            sigmas = exponential_sigmas(config.get("sigma_min") or low, config.get("sigma_max") or high, n)
            timesteps = timesteps_of(sigmas, self._table)
        self.sigmas = np.append(sigmas, 0.0).astype(np.float32)
        self.timesteps = timesteps.astype(np.float32)
        self.num_inference_steps = int(n)
        self._restart()

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the first latents: σ_max; √(σ_max² + 1) for leading, which adds a picture of variance 1."""
        sigma = float(self.sigmas.max())
        return math.hypot(sigma, 1) if self.config.timestep_spacing == "leading" else sigma

    def scales(self, timestep) -> tuple[float, float]:
        """a = 1, s = σ."""
        return 1.0, float(self.sigmas[self._find(timestep)[0]])

    def scale_model_input(self, sample, timestep):
        """x/√(σ² + 1): the model was trained on x_t = √ᾱ·x_σ, and ᾱ = 1/(σ² + 1)."""
        return sample / math.hypot(self.scales(timestep)[1], 1)

    def step(self, model_output, timestep, sample, order: int = 4) -> SchedulerOutput:
        """One step: model output and sample [B, C, H, W] at `timestep` -> the sample at the next σ. order 1…4; 1 is Euler."""
        if order not in (1, 2, 3, 4):
            raise UsageError(f"order = {order!r}", "the number of slopes that a step looks at", "use 1, 2, 3 or 4")
        here = self._expect(timestep)
        x0, slope = self.predict(model_output, timestep, sample)  # dx/dσ = (x − x0)/σ = ε
        self._here, i = here, int(here[0])
        self.derivatives = [*self.derivatives, slope][-order:]
        known = i + 1 if self.config.compat else len(self.derivatives)
        coefficients = lms_coefficients(self.sigmas, i, min(known, order))
        return SchedulerOutput(lms_step(sample, self.derivatives, coefficients), x0)
