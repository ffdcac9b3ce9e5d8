"""Normalisation in blocks that stay in the cache, with float64 sums.

One pass suffices because the sums are exact enough: Σx² − (Σx)²/n in float64 keeps 16 digits, so that even a mean a thousand times
the deviation leaves ten. In float32 the same formula is wrong in the second digit there (0.067 measured).
"""

import numpy as np

from ..dispatch import rung
from .activation import silu_in_place
from .linear import refuses_half

BLOCK = 1 << 16  # elements: 256 KiB of float32, half a megabyte of float64


def refuses_all_but_float32(x, *args, **kwargs):
    return None if x.dtype == np.float32 else "needs float32: its float64 sums would not be wider than the input"


@rung("group_norm", "blocked", owner="numpy", refuses=refuses_all_but_float32)
def group_norm(x, w, b, *, groups, eps, act):
    """y = x · a + c with one a and c for each channel: float64 sums of x and x² by blocks of pixels, then one pass to scale."""
    B, C = x.shape[0], x.shape[-1]
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    rows = max(1, BLOCK // C)
    for pixels, out in zip(x.reshape(B, -1, C), y.reshape(B, -1, C)):  # [S, C]
        S = len(pixels)
        total = np.zeros((2, C), dtype="float64")
        for top in range(0, S, rows):
            wide = pixels[top : top + rows].astype("float64")
            total[0] += wide.sum(axis=0)
            total[1] += np.einsum("sc,sc->c", wide, wide)
        mean, square = total.reshape(2, groups, -1).sum(axis=2) / (S * C // groups)  # [G] each
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0) + eps)
        a = w / deviation.repeat(C // groups)
        mean = mean.repeat(C // groups)
        # x − μ is formed before the scaling: x·a and μ·a are close where the mean is large, and their difference would lose digits.
        mean32, low = mean.astype("float32"), (b - (mean - mean.astype("float32")) * a).astype("float32")
        a = a.astype("float32")
        for top in range(0, S, rows):
            block = out[top : top + rows]
            np.subtract(pixels[top : top + rows], mean32, out=block)
            block *= a
            block += low
            if act == "silu":
                silu_in_place(block)
    return y


@rung("layer_norm", "blocked", owner="numpy", refuses=refuses_half)
def layer_norm(x, w, b, *, eps):
    """Two passes over each token, by blocks of tokens; NumPy's pairwise sums keep float32 exact enough over a row."""
    C = x.shape[-1]
    tokens = np.ascontiguousarray(x).reshape(-1, C)
    y = np.empty_like(tokens)
    rows = max(1, BLOCK // C)
    for top in range(0, len(tokens), rows):
        block, out = tokens[top : top + rows], y[top : top + rows]
        np.subtract(block, block.mean(axis=-1, keepdims=True), out=out)
        variance = np.einsum("sc,sc->s", out, out)[:, None] / C
        out /= np.sqrt(variance + eps)
        out *= w
        out += b
    return y.reshape(x.shape)
