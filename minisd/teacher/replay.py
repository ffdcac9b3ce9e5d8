"""One layer of ours on given inputs, in the reference's layout on both sides."""

import inspect

import numpy as np

from ..backend import to_nchw, to_nhwc
from ..models.model import Model
from . import layers, models  # noqa: F401  importing fills the table
from .names import answer
from .site import OWN, TABLE, Site

# Whole models take and return [B, C, H, W] themselves.
PUBLIC = {"UNet2DConditionModel", "AutoencoderKL.encode", "AutoencoderKL.decode", "CLIPTextModel", "DiagonalGaussianDistribution"}


def compute(model: Model, kind: str, path: str, inputs: dict) -> list:
    """What our layer makes of the reference's inputs: a list of arrays in the reference's layout, [B, C, H, W] for images."""
    site = Site(model, path)
    if kind in PUBLIC:
        y = TABLE[kind](site, **inputs)
        return y if isinstance(y, list) else [y]
    y = _layer(kind)(site, **{name: _inside(kind, x) for name, x in inputs.items()})
    return [_outside(kind, a) for a in (y if isinstance(y, list) else [y])]


def replay(model: Model, row: dict, fetch):
    """What `model` makes of the inputs that a trace recorded for one call of one layer; None where no layer of ours answers for it.

    row: of a manifest        fetch(key) -> the array stored under it        -> the output in the reference's layout
    """
    component, _, path = row["name"].partition(".")
    kind, names = answer(row)
    if kind not in TABLE and kind not in OWN or "inputs" not in row:
        return None
    known = input_names(kind)

    def named(given: dict) -> dict:
        given = given if names is None else {names.get(name): x for name, x in given.items()}
        return {name: x for name, x in given.items() if name in known}

    def array(name: str, stored: str):
        x = fetch(stored)  # a timestep may be a fraction that float32 cannot hold
        return x if x.dtype.kind != "f" or name.startswith("timestep") else x.astype(model.dtype)

    inputs = {name: [array(name, a) for a in x] if isinstance(x, list) else array(name, x) for name, x in named(row["inputs"]).items()}
    options = named(row.get("options", {}))
    path = path.removeprefix("text_model.") if component == "text_encoder" else path
    return compute(model, kind, path, {**inputs, **options})[0]


def input_names(kind: str) -> list:
    """The arguments of the reference's `forward` that are tensors to us."""
    return list(inspect.signature(_layer(kind)).parameters)[1:]


def _layer(kind: str):
    return TABLE[kind] if kind in TABLE else OWN[kind]


def _inside(kind, x):
    if isinstance(x, (list, tuple)):
        return [_inside(kind, a) for a in x]
    if getattr(x, "ndim", 0) == 4:
        return to_nhwc(x)
    if getattr(x, "ndim", 0) == 3 and kind == "GroupNorm":
        return np.ascontiguousarray(x.swapaxes(1, 2))  # the VAE's attention norms [B, C, S]
    return x


def _outside(kind, y):
    if y.ndim == 4:
        return to_nchw(y)
    return y.swapaxes(1, 2) if y.ndim == 3 and kind == "GroupNorm" else y
