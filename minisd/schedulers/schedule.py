"""The noise schedule: how much of a picture is left after t of T steps, and what a model's output says about it.

    x_t = √ᾱ·x0 + √(1−ᾱ)·ε          variance preserving: DDIM, PNDM         ᾱ = Π (1 − β_s), s ≤ t
    x_σ =     x0 +      σ·ε          variance exploding: LMS                 σ = √((1−ᾱ)/ᾱ),  x_σ = x_t/√ᾱ

Tables are float32. β and ᾱ equal torch's to the last bit (on x86 with AVX2, where all reference numbers come from); torch's root
does not always round correctly, so σ is equal up to the last bit. Papers: DDPM arXiv:2006.11239; zero terminal SNR and the
names of the spacings arXiv:2305.08891.
"""

import math

import numpy as np

from ..errors import UsageError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


def refuse_unknown(name: str, value, known: tuple):
    """A setting that changes the maths is one of the `known` values, or an error that names it."""
    if value not in known:
        raise UsageError(f"{name} = {value!r} is not implemented", "it changes the computation", f"use one of {', '.join(known)}")


def is_whole(number) -> bool:
    """True for an int of Python or NumPy; a bool is no number of steps."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


# ---- β and ᾱ ---------------------------------------------------------------------------------------------------------------


def make_betas(schedule: str, start: float, end: float, n: int, trained=None):
    """The variances β_0 … β_{n−1} that training added: float32 [n].

    linear: evenly spaced · scaled_linear: evenly spaced in √β, the schedule of latent diffusion · squaredcos_cap_v2: cosine ·
    `trained`: given as they are.
    """
    refuse_unknown("beta_schedule", schedule, BETA_SCHEDULES)
    if not is_whole(n) or n < 1:
        raise UsageError(f"num_train_timesteps = {n!r}", "it counts the entries of the β table", "Stable Diffusion has 1000")
    if trained is not None:
        betas = np.array(trained, dtype=np.float32)
    elif schedule == "squaredcos_cap_v2":
        betas = cosine_betas(n)
    elif schedule == "linear":
        betas = linspace_as_torch(start, end, n)
    else:
        betas = linspace_as_torch(math.sqrt(start), math.sqrt(end), n) ** 2
    if betas.shape != (n,) or not np.all((betas > 0) & (betas <= 1)):
        raise UsageError(
            f"the β table of shape {betas.shape} cannot be used",
            f"it needs {n} (num_train_timesteps) variances, each above 0 and at most 1",
            "correct beta_start, beta_end or trained_betas",
        )
    return betas


def linspace_as_torch(start: float, end: float, n: int):
    """n points from start to end: float32 [n], bit for bit torch.linspace.

    torch walks from both ends with a float32 step, and multiplies and adds with one rounding (here: in float64, rounded at the
    end). np.linspace differs in the last bit of every third entry.
    """
    start, end = np.float32(start), np.float32(end)
    step = float((end - start) / np.float32(max(n - 1, 1)))
    i = np.arange(n, dtype=np.float64)
    return np.where(i < max(n // 2, 1), float(start) + step * i, float(end) - step * (n - 1 - i)).astype(np.float32)


def cosine_betas(n: int, max_beta: float = 0.999):
    """β_i = min(1 − f((i+1)/n)/f(i/n), 0.999), f(u) = cos²(π/2·(u + 0.008)/1.008): float32 [n].   arXiv:2102.09672 eq. 17"""

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - f((i + 1) / n) / f(i / n), max_beta) for i in range(n)], dtype=np.float32)


def zero_terminal_snr(betas):
    """β moved so that the last ᾱ is 0, pure noise, and the first ᾱ stays: float32 [n] -> float32 [n].   arXiv:2305.08891 alg. 1"""
    root = np.sqrt(cumulative_alphas(betas))
    first, last = root[0], root[-1]
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    alphas = np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return np.float32(1) - alphas


def cumulative_alphas(betas):
    """ᾱ_t = Π_{s≤t} (1 − β_s): float32 [n] -> float32 [n], accumulated in float64 as torch does (float32 gives σ_max 14.6147)."""
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def noise_to_signal(alphas_cumprod):
    """σ = √((1−ᾱ)/ᾱ), in standard deviations of the data: float32 [n] -> float32 [n], ascending."""
    return np.sqrt((np.float32(1) - alphas_cumprod) / alphas_cumprod)


# ---- which timesteps, which σ ----------------------------------------------------------------------------------------------


def space_timesteps(spacing: str, n: int, n_train: int, offset: int = 0):
    """n of the n_train timesteps, descending: float64 [n], fractional for linspace (DDIM and PNDM round it).

    leading:  i·⌊T/n⌋ + offset, never reaches the last timestep · linspace: from T−1 to 0, both included ·
    trailing: round(T − i·T/n) − 1, starts at T−1.          arXiv:2305.08891 table 2; `offset` is for leading only
    """
    refuse_unknown("timestep_spacing", spacing, TIMESTEP_SPACINGS)
    if not is_whole(n) or not 1 <= n <= n_train:
        raise UsageError(
            f"num_inference_steps = {n!r}", f"the model was trained on {n_train} timesteps", f"use a whole number from 1 to {n_train}"
        )
    if spacing == "leading":
        timesteps = (np.arange(n, dtype=np.float64) * (n_train // n))[::-1] + offset
    elif spacing == "linspace":
        timesteps = np.linspace(0, n_train - 1, n, dtype=np.float64)[::-1].copy()
    else:
        # arange counts one entry too many for 62 of the n up to 1000 (61, 103, 121, …). diffusers keeps it: its runs then end at
        # timestep −1, which is the last entry of the table, and the final step goes back to noise.
        timesteps = np.round(np.arange(n_train, 0, -n_train / n, dtype=np.float64)[:n]) - 1
    if timesteps[0] > n_train - 1 or timesteps[-1] < 0:
        # leading, steps_offset 1 and n = T ask for timestep T, where diffusers stops with an IndexError.
        raise UsageError(
            f"num_inference_steps = {n} with steps_offset = {offset} asks for timestep {timesteps[0]:g}",
            f"timesteps are 0 to {n_train - 1}",
            "take fewer steps, steps_offset=0 or timestep_spacing='trailing'",
        )
    return timesteps


def karras_sigmas(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0):
    """σ_i = (σ_max^(1/ρ) + i/(n−1)·(σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, descending: float64 [n].     arXiv:2206.00364 eq. 5"""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + np.linspace(0, 1, n, dtype=np.float64) * (low - high)) ** rho


def exponential_sigmas(sigma_min: float, sigma_max: float, n: int):
    """σ evenly spaced in log σ, descending: float64 [n]."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=np.float64))


def timesteps_of(sigmas, table):
    """The fractional timestep of each σ, linear in log σ between the entries of the table: float64 [n]."""
    return np.interp(np.log(sigmas), np.log(table, dtype=np.float64), np.arange(len(table), dtype=np.float64))


# ---- what the model says ---------------------------------------------------------------------------------------------------


def x0_and_eps(prediction_type: str, output, x, a: float, s: float):
    """The clean picture and the noise that the model sees in x = a·x0 + s·ε: arrays like x -> two arrays like x.

    epsilon       output = ε                     x0 = (x − s·ε)/a
    sample        output = x0                    ε  = (x − a·x0)/s
    v_prediction  output = v = (a·ε − s·x0)/r    x0 = (a·x/r − s·v)/r,  ε = (a·v + s·x/r)/r,  r = √(a² + s²)

    Variance preserving: a = √ᾱ, s = √(1−ᾱ), r = 1. Variance exploding: a = 1, s = σ.       v: arXiv:2202.00512 appendix D
    """
    if prediction_type == "epsilon":
        return (x - s * output) / a, output
    if prediction_type == "sample":
        return output, (x - a * output) / s
    r = math.hypot(a, s)
    return (a / r**2) * x - (s / r) * output, (a / r) * output + (s / r**2) * x
