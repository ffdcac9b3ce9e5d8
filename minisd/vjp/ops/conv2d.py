"""Convolution, backwards: the gradient of the image is again a convolution, so that the fast rungs of `ops.conv2d` compute it."""

import numpy as np

from ... import ops
from ...backend import array_module
from .linear import total


def conv2d(x, w, b=None, *, stride=1, padding, again=None):
    """y[h] = Σᵢ x[s·h + i − p] wᵢ + b    →    dx[n] = Σᵢ dy[(n + p − i)/s] wᵢᵀ,   dwᵢ = Σₕ dy[h]ᵀ x[s·h + i − p],   db = Σ dy

    dx: dy with s − 1 zeros between its pixels, convolved with the taps in reverse order, each transposed (a "transposed convolution").
    dy [B, H′, W′, C′] -> dx [B, H, W, C]; wrt_params: dx, dw [C′, C, KH, KW], db [C′] (None without b)
    again: a function that makes x anew. x matters for dw only, so with it x is not kept.
    """
    shape, remake = x.shape, again or (lambda: x)
    sides = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding

    def pullback(dy, wrt_params=False):
        dx = conv2d_image(dy, w, shape, stride, sides)
        if not wrt_params:
            return dx
        return dx, conv2d_weights(dy, remake(), w, stride, sides), None if b is None else total(dy.reshape(-1, dy.shape[-1]))

    return ops.conv2d(x, w, b, stride=stride, padding=padding), pullback


def conv2d_image(dy, w, shape, stride, padding):
    """dx of this shape: output pixel h reaches the input pixels s·h − p … s·h − p + K − 1, so padding and kernel swap sides."""
    if stride > 1:
        B, H, W, C = dy.shape
        spread = array_module(dy).zeros((B, (H - 1) * stride + 1, (W - 1) * stride + 1, C), dtype=dy.dtype)
        spread[:, ::stride, ::stride] = dy
        dy = spread
    cuts, margins = [], []
    for n, m, k, (before, _) in zip(shape[1:3], dy.shape[1:3], w.shape[2:], padding):
        first = k - 1 - before
        last = n + k - 1 - m - first  # so that n rows come out
        cuts.append(slice(max(-first, 0), m - max(-last, 0)))  # what was seen by the padding alone
        margins.append((max(first, 0), max(last, 0)))
    return ops.conv2d(dy[:, cuts[0], cuts[1]], reversed_taps(w), padding=tuple(margins))


def conv2d_weights(dy, x, w, stride, padding):
    """dw: for each tap one product of all output pixels with the input pixels that it saw."""
    x = array_module(x).pad(x, ((0, 0), *padding, (0, 0)))
    dw = array_module(w).empty_like(w)
    rows, (H, W) = dy.reshape(-1, dy.shape[-1]), dy.shape[1:3]
    for i, j in np.ndindex(*w.shape[2:]):
        seen = x[:, i : i + stride * H : stride, j : j + stride * W : stride]
        dw[:, :, i, j] = rows.T @ seen.reshape(-1, seen.shape[-1])
    return dw


def reversed_taps(w):
    """w[o, c, i, j] -> w[c, o, K−1−i, K−1−j], stored channels-last as the kernels like it.        [C′, C, KH, KW] -> [C, C′, KH, KW]"""
    taps = w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)  # [KH, KW, C′, C]
    return array_module(w).ascontiguousarray(taps).transpose(3, 2, 0, 1)
