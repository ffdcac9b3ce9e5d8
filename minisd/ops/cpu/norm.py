"""Normalisation in blocks that stay in the cache, with float64 sums.

One pass suffices because the sums are exact enough: Σx² − (Σx)²/n in float64 keeps 16 digits, so that even a mean a thousand times
the deviation leaves ten. In float32 the same formula is wrong in the second digit there (0.067 measured).
"""

import math

import numpy as np

from ..dispatch import rung
from .activation import silu_in_place
from .arena import empty
from .linear import refuses_half
from .parallel import blocks, parallel_for, scratch

BLOCK = 1 << 16  # elements: 256 KiB of float32, half a megabyte of float64


def refuses_all_but_float32(x, *args, **kwargs):
    return None if x.dtype == np.float32 else "needs float32: its float64 sums would not be wider than the input"


@rung("group_norm", "blocked", owner="numpy", refuses=refuses_all_but_float32)
def group_norm(x, w, b, *, groups, eps, act):
    """y = (x − μ) · a + β with a = γ / √(σ² + ε): float64 sums of x and x² by blocks of pixels, then one pass to scale."""
    B, C = x.shape[0], x.shape[-1]
    x = np.ascontiguousarray(x)
    y = empty(x.shape, x.dtype)
    S = math.prod(x.shape[1:-1])
    parts = blocks(S, max(1, BLOCK // C))
    ones = np.ones(parts[0].stop, dtype="float64")

    for pixels, out in zip(x.reshape(B, S, C), y.reshape(B, S, C)):
        sums = np.empty((len(parts), 2, C), dtype="float64")

        def measure(i):
            wide = scratch("wide", pixels[parts[i]].shape, "float64")
            wide[...] = pixels[parts[i]]
            sums[i, 0] = ones[: len(wide)] @ wide  # a product with ones sums faster than sum() does
            wide *= wide
            sums[i, 1] = ones[: len(wide)] @ wide

        parallel_for(range(len(parts)), measure)
        mean, square = sums.sum(axis=0).reshape(2, groups, -1).sum(axis=2) / (S * C // groups)  # [G] each
        a = w / np.sqrt(np.maximum(square - mean**2, 0.0) + eps).repeat(C // groups)
        mean = mean.repeat(C // groups)
        # x − μ is formed before the scaling: x·a and μ·a are close where the mean is large, and their difference would lose digits.
        mean32, low = mean.astype("float32"), (b - (mean - mean.astype("float32")) * a).astype("float32")
        a = a.astype("float32")

        def scale(part):
            block = np.subtract(pixels[part], mean32, out=out[part])
            block *= a
            block += low
            if act == "silu":
                silu_in_place(block)

        parallel_for(parts, scale)
    return y


@rung("layer_norm", "blocked", owner="numpy", refuses=refuses_half)
def layer_norm(x, w, b, *, eps):
    """All of it in float64, by blocks of tokens that stay in the cache, and rounded once: conversion costs less than it seems."""
    C = x.shape[-1]
    tokens = np.ascontiguousarray(x).reshape(-1, C)
    y = empty(tokens.shape, tokens.dtype)

    def block(part):
        wide = scratch("wide", tokens[part].shape, "float64")
        np.subtract(tokens[part], tokens[part].mean(axis=-1, keepdims=True, dtype="float64"), out=wide)
        variance = np.einsum("sc,sc->s", wide, wide)[:, None] / C
        wide /= np.sqrt(variance + eps)
        wide *= w
        wide += b
        y[part] = wide

    parallel_for(blocks(len(tokens), max(1, BLOCK // C)), block)
    return y.reshape(x.shape)
