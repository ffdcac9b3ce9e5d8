"""How near every layer of a large torch model, and ours with the same weights, are to float64: one module at a time, nothing kept.

    for row in stream(torch_model, our_model, lambda: torch_model(**inputs)):
        print(row.path, row.ratio["exact"])

While torch runs in float32, a hook behind every module feeds its inputs, float32 numbers, to the same module in float64 and to our
layer in each numerics profile, and keeps three errors. Weights become float64 only inside a leaf that is just computing, so that
nothing is in memory twice: a UNet of Stable Diffusion takes 7 GB, of which each side's weights are 3.4.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from minisd import ops
from minisd.compare import own_budget
from minisd.ops.dispatch import PROFILES
from tests.layer_table import NOT_LAYERS, compute, input_names
from tests.numerics import relative_l2
from tests.reference.record import tensors, timesteps_in_float64, to_double, to_numpy


@dataclass(frozen=True)
class Closeness:
    """One module: relative L2 errors against float64, torch's in float32 and ours by profile; the budget of `minisd diff` for its kind."""

    path: str
    kind: str
    torch: float
    ours: dict
    budget: float

    @property
    def ratio(self) -> dict:
        """r = err(ours) / err(torch) by profile; of two exact results 0."""
        return {profile: error / self.torch if self.torch else (0.0 if error == 0.0 else np.inf) for profile, error in self.ours.items()}


@torch.no_grad()
def stream(reference, ours, run, profiles=PROFILES) -> list:
    """Runs `reference` once by `run()`: the Closeness of every module that is a layer of ours, in the order in which they return."""
    found, busy = [], []

    def hook_for(path, kind):
        def hook(module, args, kwargs, output):
            if busy:  # this is the module inside another one that is just computing its truth
                return
            busy.append(path)
            with timesteps_in_float64(), leaves_in_float64(module):
                truth = flat(module(*to_double(args), **to_double(kwargs)))
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            inputs = {name: to_numpy(bound[name]) for name in input_names(kind) if bound.get(name) is not None}
            errors = {}
            for profile in profiles:
                with ops.using(profile=profile):
                    errors[profile] = relative_l2(np.concatenate([y.ravel() for y in compute(ours, kind, path, inputs)]), truth)
            reduction = module.weight[0].numel() if kind in ("Linear", "Conv2d") else 0
            found.append(Closeness(path, kind, relative_l2(flat(output), truth), errors, own_budget(kind, reduction, "float32")))
            busy.pop()

        return hook

    hooks = [
        module.register_forward_hook(hook_for(path, type(module).__name__), with_kwargs=True)
        for path, module in reference.named_modules()
        if type(module).__name__ not in NOT_LAYERS
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def flat(output) -> np.ndarray:
    return np.concatenate([y.ravel() for y in tensors(output)])


@contextmanager
def leaves_in_float64(module):
    """Inside the block each module with weights of its own computes in float64, and is float32 again when it returns: no digit is lost."""
    leaves = [leaf for leaf in module.modules() if next(leaf.parameters(recurse=False), None) is not None]
    hooks = [leaf.register_forward_pre_hook(lambda leaf, _: leaf.double() and None) for leaf in leaves]
    hooks += [leaf.register_forward_hook(lambda leaf, *_: leaf.float() and None) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
