"""Runs a torch model once and keeps what every module of it was given and gave: the reference side of all layer comparisons.

    calls = record(model, lambda: model(**inputs))            float32: each module's own inputs and torch's own result
    truth(exact(model), calls["conv_in"])                     float64: the same inputs through the same module in double precision
"""

import copy
import inspect
import math
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models import embeddings as diffusers_embeddings
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextConfig, CLIPTextModel

from tests.layer_table import NOT_LAYERS, input_names
from tests.tiny_models import make_weights


@dataclass
class Call:
    """One call of one module: `inputs` by argument name, `plain` what torch made of them in float32."""

    path: str
    kind: str
    inputs: dict
    plain: list
    replay: object = None  # (float64 model) -> output


def tiny_reference(name: str, config: dict):
    """The torch model of a family with the made-up weights, and its {tensor name: shape}."""
    if name.startswith("clip"):
        model = CLIPTextModel(CLIPTextConfig(**config))
    else:
        model = (UNet2DConditionModel if name.startswith("unet") else AutoencoderKL)(**config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    weights = {key: torch.from_numpy(tensor) for key, tensor in make_weights(shapes).items()}
    model.load_state_dict(weights, strict=True)
    return model.eval(), shapes


def exact(model):
    """A copy of the model in float64: the truth, since its weights are the float32 ones."""
    return copy.deepcopy(model).double()


@torch.no_grad()
def record(model, run) -> dict:
    """{path: Call} of every module that is a layer of ours, in the order in which they return."""
    calls = {}

    def hook_for(path, module):
        kind = type(module).__name__

        def hook(module, args, kwargs, output):
            assert path not in calls, f"{path} was called twice"
            bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            inputs = {name: to_numpy(bound[name]) for name in input_names(kind) if bound.get(name) is not None}

            def replay(model):
                return model.get_submodule(path)(*to_double(args), **to_double(kwargs))

            calls[path] = Call(path, kind, inputs, tensors(output), replay)

        return hook

    hooks = [
        module.register_forward_hook(hook_for(path, module), with_kwargs=True)
        for path, module in model.named_modules()
        if type(module).__name__ not in NOT_LAYERS
        and not isinstance(module, AutoencoderKL)  # has two ways to be called; `record_run` adds them
    ]
    try:
        run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@torch.no_grad()
def record_run(name: str, model, inputs: dict) -> dict:
    """`record` of a whole run of a family on the inputs of `make_inputs`."""
    given = {key: torch.from_numpy(array) for key, array in inputs.items()}
    if name.startswith("unet"):
        return record(model, lambda model: model(**given))
    if name.startswith("clip"):
        return record(model, lambda model: model(**given, output_hidden_states=True))

    def encode(model, x):
        posterior = model.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    def decode(model, z):
        return model.decode(z).sample

    whole = {}

    def both(model):
        for method, argument in ((encode, "x"), (decode, "z")):
            x = given[argument]
            kind = f"AutoencoderKL.{method.__name__}"
            replay = (lambda method, x: lambda model: method(model, x.double()))(method, x)
            whole[kind] = Call(kind, kind, {argument: inputs[argument]}, tensors(method(model, x)), replay)

    return {**record(model, both), **whole}


def record_posterior(moments: np.ndarray) -> Call:
    """diffusers' DiagonalGaussianDistribution of these moments, which need no model."""

    def run(parameters):
        posterior = DiagonalGaussianDistribution(parameters)
        return posterior.mode(), posterior.logvar, posterior.std

    parameters, kind = torch.from_numpy(moments), "DiagonalGaussianDistribution"
    return Call(kind, kind, {"parameters": moments}, tensors(run(parameters)), lambda model: run(parameters.double()))


@torch.no_grad()
def truth(model_in_float64, call: Call) -> list:
    """The call's inputs, float32 numbers, through the same module in float64: a list of arrays."""
    with timesteps_in_float64():
        return tensors(call.replay(model_in_float64))


@contextmanager
def timesteps_in_float64():
    """diffusers forms the sinusoidal embedding in float32 even in a float64 model, 6e-5 away from the truth near t = 1000."""

    def get_timestep_embedding(timesteps, embedding_dim, flip_sin_to_cos, downscale_freq_shift, scale=1, max_period=10000):
        half = embedding_dim // 2
        exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
        phase = scale * timesteps[:, None].double() * exponent.exp()
        parts = (phase.cos(), phase.sin()) if flip_sin_to_cos else (phase.sin(), phase.cos())
        return torch.nn.functional.pad(torch.cat(parts, dim=-1), (0, embedding_dim % 2))

    with mock.patch.object(diffusers_embeddings, "get_timestep_embedding", get_timestep_embedding):
        yield


def tensors(output) -> list:
    """The arrays of a module's output, flat: (x, (skip, skip)) -> [x, skip, skip]; of CLIP the last and all hidden states."""
    if output is None:
        return []
    if isinstance(output, torch.Tensor):
        return [output.numpy()]
    if hasattr(output, "sample"):
        return [output.sample.numpy()]
    if hasattr(output, "last_hidden_state"):
        return [a for x in (output.last_hidden_state, output.hidden_states) for a in tensors(x)]
    return [a for x in output for a in tensors(x)]


def to_numpy(x):
    if isinstance(x, torch.Tensor):
        return x.numpy()
    return type(x)(to_numpy(a) for a in x) if isinstance(x, tuple) else x


def to_double(x):
    """The arguments of a call with their float tensors in float64."""
    if isinstance(x, torch.Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, dict):
        return {key: to_double(a) for key, a in x.items()}
    return type(x)(to_double(a) for a in x) if type(x) in (list, tuple) else x
