"""What does not change from step to step is computed once for a run: the prompt's keys and values, and the timesteps' projections.

    once = Once(scheduler.timesteps)
    for t in scheduler.timesteps:
        noise = unet(latents, t, context, once)        # as unet(latents, t, context), in less time

On a GPU what remains is one CUDA graph (`ops/cuda/graph.py`). The page docs/kernels/step.md counts what is saved.
"""

import functools

import numpy as np

from .. import ops
from ..backend import array_module
from ..layers.ready import Ready, products
from ..ops.cuda.graph import Replay
from ..ops.dispatch import choices
from .unet import embed_time, unet

KEYS_AND_VALUES = ("attn2.to_k", "attn2.to_v")
TIME_PROJECTIONS = ("time_emb_proj",)
PROMPTS = 2  # kept: guidance in two passes has one for each half


class Once:
    """What one run of a UNet computes once. It looks again whenever a step might differ: a prompt is compared number by number, and other
    weights (`model.params`, as LoRAs replace them) or rungs (`ops.using`) make it forget. Only numbers written over inside of a weight array
    are not noticed.

    timesteps: those to come, if they are known: a GPU projects them all at once
    """

    def __init__(self, timesteps=()):
        self.schedule = [float(t) for t in timesteps]
        self.params, self.rungs, self.prompts, self.times = None, None, [], {}

    def step(self, model, sample, timestep, encoder_hidden_states):
        """The model's answer [B, H, W, C].        sample [B, C, H, W] or half of it, timestep, encoder_hidden_states [B, T, C_text]"""
        if self.params is not model.params or self.rungs != choices():
            self.params, self.rungs, self.prompts, self.times = model.params, choices(), [], {}
        x = model.image(sample)
        context = self.prompt(model, encoder_hidden_states, len(x))
        t = self.time(model, timestep, x, len(encoder_hidden_states))
        if not model.cuda_graph:
            model.replay = None  # and with it the memory of its graph
        if not (model.cuda_graph and on_gpu(x) and isinstance(t, Ready)):
            return unet(model.params, x, t, context, model.config)
        model.replay = model.replay or Replay()
        kind = (t.places, context.places, self.rungs)
        return model.replay(functools.partial(flat_unet, model.params, model.config, t.places, context.places), kind, x, t.flat, context.flat)

    def prompt(self, model, vectors, images: int) -> Ready:
        """Keys and values of the prompt for every cross-attention.        vectors [B, T, C_text] -> {to_k, to_v: [B, T, C]}"""
        for known, ready in self.prompts:
            if len(vectors) in (images, 2 * images) and same(known, vectors):
                return ready
        (ready,) = products(modules(model.params, KEYS_AND_VALUES), model.context(vectors, images)[None])
        self.prompts = [*self.prompts[1 - PROMPTS :], (vectors.copy(), ready)]
        return ready

    def time(self, model, timestep, x, rows: int):
        """Each resnet's projection of the timestep -> {time_emb_proj: [rows, C′]}; of several timesteps, t [rows] as it is.

        On the CPU a timestep is projected when its step comes, by products of as many rows as ever: BLAS rounds a product of more rows
        differently, and the picture should not depend on this class. A GPU is spared the launches of all steps at once.
        """
        if np.ndim(timestep):
            return model.timesteps(timestep, x, rows)
        t = float(timestep)
        if (t, rows) not in self.times:
            ahead = list(dict.fromkeys([t, *self.schedule])) if on_gpu(x) else [t]
            t_emb = embed_time(model.params, array_module(x).asarray(np.repeat(ahead, rows)), model.config, x.dtype)
            ready = products(modules(model.params, TIME_PROJECTIONS), ops.silu(t_emb).reshape(len(ahead), rows, -1))
            self.times.update(zip(((t, rows) for t in ahead), ready))
        return self.times[t, rows]


def flat_unet(params, config, times: dict, keys_and_values: dict, x, t, context):
    """`unet` as a function of three arrays: the latents [B, H, W, C], and the flat products of the timestep and of the prompt."""
    return unet(params, x, Ready(t, times), Ready(context, keys_and_values), config)


def on_gpu(x) -> bool:
    return array_module(x) is not np


def same(a, b) -> bool:
    """Whether two arrays hold the same numbers, in the same place and of the same kind."""
    return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


def modules(params, endings: tuple) -> list:
    """The layers with a weight whose path ends in one of these."""
    names = [name.removesuffix(".weight") for name, _ in params.leaves() if name.endswith(tuple(f"{ending}.weight" for ending in endings))]
    return [functools.reduce(getattr, name.split("."), params) for name in names]
