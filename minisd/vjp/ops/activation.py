"""SiLU and the GELUs, backwards: the gradient times the slope of the curve."""

import math

import numpy as np

from ... import ops
from ...backend import array_module


def silu(x):
    """y = x σ(x)    →    dx = dy · σ(x) (1 + x (1 − σ(x)))."""
    return ops.silu(x), lambda dy: dy * silu_slope(x)


def quick_gelu(x):
    """y = x σ(a x), a = 1.702    →    dx = dy · σ(a x) (1 + a x (1 − σ(a x))): y = silu(a x)/a, and the two a of the chain rule cancel."""
    return ops.quick_gelu(x), lambda dy: dy * silu_slope(1.702 * x)


def gelu(x):
    """y = x Φ(x)    →    dx = dy · (Φ(x) + x φ(x)), φ(x) = exp(−x²/2)/√(2π) the slope of Φ."""
    y = ops.gelu(x)
    return y, lambda dy: dy * gelu_slope(x, y)


def geglu(x):
    """y = h · GELU(g), x = [h, g]    →    dx = [dy · GELU(g), dy · h · GELU′(g)].        dy [..., C] -> dx [..., 2C]"""
    C = x.shape[-1] // 2
    h, g = x[..., :C], x[..., C:]
    curve = ops.gelu(g)
    return h * curve, lambda dy: array_module(x).concatenate((dy * curve, dy * h * gelu_slope(g, curve)), axis=-1)


def softmax(x):
    """yᵢ = exp xᵢ / Σ exp    →    dxᵢ = yᵢ (dyᵢ − Σⱼ yⱼ dyⱼ): raising one probability lowers the others.        [..., T] -> [..., T]"""
    y = ops.softmax(x)
    return y, lambda dy: y * (dy - (y * dy).sum(axis=-1, keepdims=True))


def silu_slope(x):
    """σ(x) (1 + x (1 − σ(x)))."""
    with np.errstate(over="ignore"):  # e⁻ˣ = ∞ gives the σ = 0 it should
        sigmoid = 1.0 / (1.0 + array_module(x).exp(-x))
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


def gelu_slope(x, y):
    """Φ(x) + x φ(x), with Φ(x) = y/x from y = GELU(x), which the forward pass has already: erf is the dear part of it."""
    xp = array_module(x)
    near_zero = abs(x) < 1e-30
    cdf = xp.where(near_zero, 0.5, y / xp.where(near_zero, 1.0, x)).astype(x.dtype, copy=False)
    return cdf + x * xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
