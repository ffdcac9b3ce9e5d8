"""Steering a picture by any loss on its pixels: after a step the latents move against the loss's gradient, by way of the VAE's decoder.

    from minisd.guidance import blue_loss, guided

    for step in guided(pipe.steps("a campfire", seed=32), pipe, blue_loss(), scale=200, every=5):
        pass
    image = pipe.to_images(step.latents)[0]

A loss is a function of the pixels [B, H, W, 3] in 0 … 1 (overshoots included) that returns its value and its gradient, shaped like the pixels.
Each picture's loss is a mean over its own pixels, and a batch's value their sum, so that a picture is steered alike in any batch.

Of the same kind: fast.ai's "Stable Diffusion Deep Dive" (with its LMS sampler the same numbers); Bansal et al., arXiv:2302.07121.
"""

import math

import numpy as np

from . import vjp
from .backend import array_module
from .errors import UsageError

# ----- losses ----------------------------------------------------------------------------------------------------------------


def blue_loss(target: float = 0.9):
    """mean |B − target|, the loss of the Deep Dive: pixels [B, H, W, 3] -> its value, its gradient [B, H, W, 3]."""
    return colour_loss((None, None, target))


def colour_loss(colour, mask=None):
    """Σ_channels mean |pixels − colour|, the mean over the pixels where the mask is 1 (weighted by it, if it is between).

    colour: (R, G, B) in 0 … 1, None for a channel that is free; mask [H, W] or None for the whole picture
    """
    fixed = [i for i, c in enumerate(colour) if c is not None]
    if len(colour) != 3 or not fixed or not all(math.isfinite(colour[i]) for i in fixed):
        raise UsageError(f"the colour is {colour!r}", "it has a red, a green and a blue part, of which one may not be None", "give (0.1, 0.2, 0.9)")
    if mask is not None and not (mask.ndim == 2 and float(mask.min()) >= 0 and float(mask.sum()) > 0):
        raise UsageError(f"the mask has the shape {list(mask.shape)}", "it must be [H, W], not negative, and not 0 everywhere", "give 1 inside")

    def loss(pixels):
        xp = array_module(pixels)
        weight = xp.ones(pixels.shape[1:3], pixels.dtype) if mask is None else like_picture(mask, pixels)
        weight = weight[..., None] / weight.sum()
        gradient, value = xp.zeros_like(pixels), 0.0
        for i in fixed:
            off = pixels[..., i : i + 1] - colour[i]
            value += float((abs(off) * weight).sum())
            gradient[..., i : i + 1] = xp.sign(off) * weight
        return value, gradient

    return loss


def thumbnail_loss(thumbnail):
    """mean (small − thumbnail)², where `small` is the picture averaged over blocks down to the thumbnail's size.

    thumbnail [h, w, 3] in 0 … 1, h and w whole parts of the picture's height and width
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3:
        raise UsageError(f"the thumbnail has the shape {list(thumbnail.shape)}", "it must be [h, w, 3], in 0 … 1", "np.asarray(image) / 255")
    h, w, _ = thumbnail.shape

    def loss(pixels):
        B, H, W, _ = pixels.shape
        if H % h or W % w:
            raise UsageError(f"a thumbnail of {h}×{w} for pictures of {H}×{W}", "each of its pixels is the mean of a block", "resize it to fit")
        small = pixels.reshape(B, h, H // h, w, W // w, 3).mean(axis=(2, 4))
        off = small - array_module(pixels).asarray(thumbnail, dtype=pixels.dtype)
        gradient = off * (2.0 / off[0].size / (H // h * (W // w)))
        return float((off**2).sum()) / off[0].size, gradient.repeat(H // h, axis=1).repeat(W // w, axis=2)

    return loss


def like_picture(mask, pixels):
    if mask.shape != pixels.shape[1:3]:
        raise UsageError(f"a mask of {mask.shape[0]}×{mask.shape[1]} for pictures of {pixels.shape[1]}×{pixels.shape[2]}", "", "give it their size")
    return array_module(pixels).asarray(mask, dtype=pixels.dtype)


# ----- the loop --------------------------------------------------------------------------------------------------------------


def guided(steps, pipe, loss, *, scale: float = 1.0, every: int = 1, max_sigma: float = math.inf, through_unet: dict | None = None):
    """The steps of `pipe.steps(…)`, every `every`-th with its latents moved down the gradient of `scale · loss(pixels)`.

    In x = a·x0 + s·ε the loss is that of the decoded x0, and the move is x ← x − s² · scale · dloss/dx, s the noise at this step: σ² in the
    variables of LMS. It is made after the step, in the coordinates x/a, in which steps only add.

    max_sigma: steps with a noise σ = s/a above it are left as they are: while σ is large x0 is a blur, and σ² makes long moves of its gradient.
    through_unet: None holds the predicted noise fixed, so that dx0/dx = 1/a: cheap, and what the Deep Dive does. A dict of what `pipe.steps`
    was given (prompt_embeds; negative_prompt_embeds and guidance_scale if it guides) takes the gradient through the UNet, for one more pass
    of it forwards and back. Raises UsageError.
    """
    if not isinstance(every, int) or every < 1 or not math.isfinite(scale):
        raise UsageError(f"every = {every!r}, scale = {scale!r}", "a whole number of steps, and a finite factor", "try every=5 and scale=200")
    backwards = None if through_unet is None else unet_in_graph(pipe, **through_unet)

    def loop():
        for step in steps:
            a, s = pipe.scheduler.scales(step.t)
            if step.index % every == 0 and s / a <= max_sigma:
                _, gradient = loss_of_latents(pipe.vae, step.pred_original_sample, loss)
                gradient = gradient_of_sample(pipe.scheduler, step, gradient, backwards)
                step.latents = step.latents - scale * (s**2 / a * scale_after(pipe.scheduler, step.t)) * gradient
            yield step

    return loop()


def loss_of_latents(vae, x0, loss):
    """The loss of the picture that latents x0 decode to, and its gradient: x0 [B, 4, H, W] -> value, dloss/dx0."""
    pixels, pullback = vjp.decode(vae, x0 / vae.config.scaling_factor)
    value, d_unit = loss((pixels / 2 + 0.5).transpose(0, 2, 3, 1))
    d_pixels = array_module(x0).asarray(d_unit, dtype=pixels.dtype).transpose(0, 3, 1, 2) / 2
    return value, pullback(d_pixels) / vae.config.scaling_factor


def shares(prediction_type: str, a: float, s: float) -> tuple[float, float]:
    """α and β of x0 = α·x + β·output, the derivatives of `schedulers.schedule.x0_and_eps`."""
    r = math.hypot(a, s)
    return {"epsilon": (1 / a, -s / a), "sample": (0.0, 1.0), "v_prediction": (a / r**2, -s / r)}[prediction_type]


def gradient_of_sample(scheduler, step, d_x0, backwards):
    """dloss/dx = α·dx0 + Jᵀ(β·dx0), J = doutput/dx of the guided UNet; without `backwards` ε is held fixed: dx0/a."""
    kind = scheduler.config.prediction_type
    a, s = scheduler.scales(step.t)
    if backwards is None:
        return d_x0 / a
    share_x, share_output = shares(kind, a, s)
    if kind == "sample":
        raise UsageError("through_unet with prediction_type 'sample'", "x cannot be told from x0 alone", "leave through_unet out")
    x = (step.pred_original_sample - share_output * step.noise_pred) / share_x
    one = np.ones((1, 1, 1, 1), dtype=x.dtype)  # scale_model_input is linear: its factor is what it makes of 1
    factor = float(scheduler.scale_model_input(one, step.t)[0, 0, 0, 0])
    return share_x * d_x0 + factor * backwards(x * factor, step.t, share_output * d_x0)


def unet_in_graph(pipe, prompt_embeds, negative_prompt_embeds=None, guidance_scale: float = 7.5):
    """(x, t, doutput) -> Jᵀ doutput for the output u + g (c − u) of classifier-free guidance; of c alone where there is none."""
    if negative_prompt_embeds is None:
        return lambda x, t, d: vjp.unet(pipe.unet, x, t, prompt_embeds)[1](d)[0]

    def backwards(x, t, d):
        xp = array_module(x)
        context = xp.concatenate((negative_prompt_embeds, prompt_embeds))
        _, pullback = vjp.unet(pipe.unet, xp.concatenate((x, x)), t, context)
        dx, _ = pullback(xp.concatenate(((1.0 - guidance_scale) * d, guidance_scale * d)))
        return dx[: len(x)] + dx[len(x) :]

    return backwards


def scale_after(scheduler, t) -> float:
    """a at the noise level that a step from timestep t leads to; 1 at the end."""
    i = scheduler.step_index  # None for samplers that remember nothing
    i = int(np.flatnonzero(scheduler.timesteps == t)[-1]) + 1 if i is None else i
    return scheduler.scales(scheduler.timesteps[i])[0] if i < len(scheduler.timesteps) else 1.0
