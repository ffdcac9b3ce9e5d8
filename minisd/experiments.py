"""Two experiments that show what a scheduler is for: one step from noise to picture, and many steps without a schedule.

    context = np.concatenate((pipe.encode_prompt([""]), pipe.encode_prompt(["a red apple"])))      # [negative, positive]
    x0, eps = one_shot(pipe, x, context, index=5)
    *_, x = without_scheduler(pipe, noise, context)
"""

import math
from collections.abc import Iterator

from .schedulers.schedule import x0_and_eps


def one_shot(pipe, x, context, *, index: int | None = None, timestep=None, guidance_scale: float = 7.5):
    """The picture and the noise that one call of the UNet sees in x: x0 = (x − s·ε)/a of x = a·x0 + s·ε.

    x [B, 4, H, W] as the scheduler has it at this place of its schedule, by index or by timestep; context [2B, T, C], the negative prompts first,
    or [B, T, C] without guidance        -> x0 and ε, like x
    """
    scheduler = pipe.scheduler
    t = scheduler.at(index=index, timestep=timestep)
    output = pipe.predict_noise(scheduler.scale_model_input(x, t), t, context, guidance_scale)
    return scheduler.predict(output, t, x)


def without_scheduler(pipe, x, context, *, ratio: float = 1.5, guidance_scale: float = 7.5) -> Iterator:
    """n times x ← x − ratio·ε/n, with the n timesteps that are set: yields x after each.

    Every step takes away the same share of what looks like noise, whether there is much of it or little. A scheduler knows how much
    there is; this needs a ratio found by trial, and only comes near a picture.        x [B, 4, H, W], noise of variance 1 -> like x
    """
    timesteps = pipe.scheduler.timesteps
    for t in timesteps:
        a, s = pipe.scheduler.scales(t)
        r = math.hypot(a, s)  # as fractions of a variance of 1: √ᾱ and √(1−ᾱ), whatever the scheduler
        output = pipe.predict_noise(x, t, context, guidance_scale)
        _, eps = x0_and_eps(pipe.scheduler.config.prediction_type, output, x, a / r, s / r)
        x = x - ratio / len(timesteps) * eps
        yield x
