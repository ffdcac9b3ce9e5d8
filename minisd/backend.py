"""Which array library owns an array, and how arrays cross the border: with `gpu.py` the only place outside `ops/cuda` that knows of CuPy."""

import sys
from contextlib import nullcontext
from types import ModuleType

import numpy as np

from .errors import ContractError


def array_module(*arrays, names=None) -> ModuleType:
    """The library (`numpy` or `cupy`) that owns all of `arrays`; None is skipped. Mixed owners raise and name the argument."""
    cupy = sys.modules.get("cupy")  # nobody can hold a CuPy array without having imported it
    first = None
    for i, a in enumerate(arrays):
        if a is None:
            continue
        owner = cupy if cupy is not None and isinstance(a, cupy.ndarray) else np
        first = first or owner
        if owner is not first:
            label = names[i] if names else f"argument {i}"
            raise ContractError(
                f"arrays of two owners: {label} belongs to {owner.__name__}, the first argument to {first.__name__}",
                "an op runs where its arrays are and never moves them silently",
                "move one of them: minisd.backend.to_numpy(x), or cupy.asarray(x)",
            )
    return first or np


def device_of(x) -> str:
    """Where an array lives: "cpu", or "cuda:0", "cuda:1", …"""
    return "cpu" if array_module(x) is np else f"cuda:{x.device.id}"


def index_of(device: str) -> int:
    """1 for "cuda:1"."""
    return int(device.partition(":")[2])


def host_dtype(dtype) -> np.dtype:
    """What numbers of this dtype are on the host: float32 for float16, in which NumPy has no matrix product, else the same."""
    return np.dtype("float32") if np.dtype(dtype) == np.float16 else np.dtype(dtype)


def to_numpy(x) -> np.ndarray:
    """The array as NumPy, copied from the device if it lives there."""
    return x if isinstance(x, np.ndarray) else x.get() if hasattr(x, "get") else np.asarray(x)


def to_device(x, device: str):
    """The array on a device, "cpu" or "cuda:N", in the same order in memory: itself if it is there already."""
    if device_of(x) == device:
        return x
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])  # CuPy would make it C-contiguous on the way
    packed, back = x.transpose(order), np.argsort(order).tolist()
    if device == "cpu":
        return packed.get().transpose(back)
    import cupy

    with cupy.cuda.Device(index_of(device)):
        return cupy.asarray(packed).transpose(back)


def like(x, other):
    """x where `other` lives, and in its dtype."""
    x = x if hasattr(x, "dtype") else np.asarray(x)
    with beside(x):
        return to_device(x.astype(other.dtype, copy=False), device_of(other))


def beside(x):
    """A context in which new arrays are made on the device of x."""
    return nullcontext() if array_module(x) is np else x.device


def to_nhwc(x):
    """[B, C, H, W] as people and files have it -> [B, H, W, C] as every layer has it, contiguous."""
    return array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_nchw(x):
    """[B, H, W, C] -> [B, C, H, W], contiguous."""
    return array_module(x).ascontiguousarray(x.transpose(0, 3, 1, 2))
