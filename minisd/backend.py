"""Which array library owns an array, and how arrays cross the border: the only place outside `ops/cuda` that knows of CuPy."""

import sys
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


def to_numpy(x) -> np.ndarray:
    """The array as NumPy, copied from the device if it lives there."""
    return x if isinstance(x, np.ndarray) else x.get() if hasattr(x, "get") else np.asarray(x)


def to_nhwc(x):
    """[B, C, H, W] as people and files have it -> [B, H, W, C] as every layer has it, contiguous."""
    return array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1))


def to_nchw(x):
    """[B, H, W, C] -> [B, C, H, W], contiguous."""
    return array_module(x).ascontiguousarray(x.transpose(0, 3, 1, 2))
