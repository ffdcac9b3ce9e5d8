"""Every step of a run as a picture: where it stands, and beside it what the UNet has in mind.

    steps = list(pipe.steps("a red apple", num_inference_steps=25, seed=32))
    image.save_animation(frames(pipe, steps), "apple.gif")
"""

import numpy as np

from ..errors import UsageError
from .pictures import captioned, enlarged, grid


def frames(pipe, steps: list, preview=None) -> list:
    """For each `Step` a picture: x after the step on the left, the predicted x0 on the right, a row for each picture of the batch.

    x is shown as the UNet sees it: what is variance exploding (LMS) is divided by √(σ² + 1) first. Two decodings a step; with
    preview=`fit_preview(pipe.vae)` none, each latent pixel is then a square.        -> PIL images
    """
    show = pipe.to_images if preview is None else lambda x: preview(x, pipe.vae.config.downscale)
    sheets = []
    for step in steps:
        pairs = zip(show(as_seen(pipe.scheduler, step)), show(step.pred_original_sample))
        sheets.append(grid([image for pair in pairs for image in pair], columns=2, gap=0))
    return sheets


def as_seen(scheduler, step):
    """x after a step as the UNet will see it at the next timestep; after the last one as it is.        -> like step.latents"""
    found = np.flatnonzero(np.asarray(scheduler.timesteps) == step.t)
    if not found.size:
        why = "the scheduler was set for another run since"
        raise UsageError(f"no timestep of the schedule is {step.t:g}", why, "make the frames before the next run, or call set_timesteps again")
    here = found[-1]
    if here + 1 == len(scheduler.timesteps):
        return step.latents
    return scheduler.scale_model_input(step.latents, scheduler.timesteps[here + 1])


def noise_levels(pipe, latents, noise, indices, columns: int = 4):
    """A clean picture with the noise of several places of the schedule, decoded, with index, timestep and sigma above each.

    latents, noise [1, C, H, W]; indices into `pipe.scheduler.timesteps` (an index is not a timestep)        -> PIL image
    """
    scheduler, pictures = pipe.scheduler, []
    for i in indices:
        t = scheduler.at(index=i)
        a, s = scheduler.scales(t)
        x = scheduler.scale_model_input(scheduler.add_noise_at(latents, noise, index=i), t)
        pictures.append((f"index {i}: t = {t:.5g}, sigma = {s / a:.3g}", enlarged(pipe.to_images(x)[0])))
    return captioned(pictures, columns)
