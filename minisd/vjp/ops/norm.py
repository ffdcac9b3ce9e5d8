"""Normalisation, backwards: the gradient loses its mean and its share along x̂, since neither moves the result."""

import math

import numpy as np

from ... import ops
from ...backend import array_module
from ...ops.cpu.norm import BLOCK
from ...ops.cpu.parallel import blocks, parallel_for
from .activation import silu_slope


def group_norm(x, w, b, *, groups, eps, act=None):
    """y = γ x̂ + β, x̂ = (x − μ)/s, s = √(σ² + ε)    →    dx = (γ d − ⟨γ d⟩ − x̂ ⟨γ d x̂⟩)/s,   dγ = Σ d x̂,   dβ = Σ d

    d = dy, or dy · SiLU′(y) for act="silu"; Σ over the pixels (of all images), ⟨⟩ the mean over a group of one image.
    Kept for the way back: x alone; everything else is computed again, by blocks of pixels that stay in the cache, with sums in float64.
    dy [B, ..., C] -> dx [B, ..., C]; wrt_params: dx, dw [C], db [C]
    """
    B, C = x.shape[0], x.shape[-1]
    S = math.prod(x.shape[1:-1])
    parts = blocks(S, max(1, BLOCK // C) if array_module(x) is np else max(1, S))

    def sums(f):
        """Σ f(block): the blocks on all workers, their sums in order."""
        found = [0.0] * len(parts)
        parallel_for(range(len(parts)), lambda i: found.__setitem__(i, f(parts[i])))
        return sum(found)

    def mean(of_channels):
        """[C] sums -> [C], in every channel the mean over the pixels and channels of its group."""
        return (of_channels.reshape(groups, -1).sum(axis=1) / (S * C // groups)).repeat(C // groups)

    def pullback(dy, wrt_params=False):
        xp = array_module(x, dy, names=("x", "dy"))
        dx, dw, db = xp.empty(x.shape, dtype=x.dtype), 0.0, 0.0
        for pixels, d_out, dx_out in zip(x.reshape(B, S, C), dy.reshape(B, S, C), dx.reshape(B, S, C)):
            mu = mean(sums(lambda part: pixels[part].sum(axis=0, dtype="float64")))
            s = xp.sqrt(mean(sums(lambda part: ((pixels[part] - mu) ** 2).sum(axis=0))) + eps)

            mu, s = mu.astype(x.dtype), s.astype(x.dtype)

            def measure(part):
                x_hat, d = (pixels[part] - mu) / s, d_out[part]
                if act == "silu":
                    d = d * silu_slope(x_hat * w + b)
                dx_out[part] = d  # for the second pass
                return xp.stack((d.sum(axis=0, dtype="float64"), (d * x_hat).sum(axis=0, dtype="float64")))

            d_sum, d_x_hat = sums(measure)
            gain, m, m_x_hat = w / s, (mean(w * d_sum) / s).astype(x.dtype), (mean(w * d_x_hat) / s**2).astype(x.dtype)

            def project(part):
                dx_out[part] *= gain
                dx_out[part] -= (pixels[part] - mu) * m_x_hat + m

            parallel_for(parts, project)
            dw, db = dw + d_x_hat, db + d_sum
        return (dx, dw.astype(x.dtype), db.astype(x.dtype)) if wrt_params else dx

    return ops.group_norm(x, w, b, groups=groups, eps=eps, act=act), pullback


def layer_norm(x, w, b, *, eps):
    """y = γ x̂ + β, x̂ = (x − μ)/s    →    dx = (γ dy − ⟨γ dy⟩ − x̂ ⟨γ dy x̂⟩)/s,   dγ = Σ dy x̂,   dβ = Σ dy

    ⟨⟩ is the mean over the channels of a token, Σ the sum over all tokens; in float64.
    dy [..., C] -> dx [..., C]; wrt_params: dx, dw [C], db [C]
    """

    def pullback(dy, wrt_params=False):
        x_hat = x.astype("float64")
        x_hat = x_hat - x_hat.mean(axis=-1, keepdims=True)
        s = array_module(x).sqrt((x_hat**2).mean(axis=-1, keepdims=True) + eps)
        x_hat /= s
        d = dy * w.astype("float64")
        share = (d * x_hat).mean(axis=-1, keepdims=True)
        dx = ((d - d.mean(axis=-1, keepdims=True) - x_hat * share) / s).astype(x.dtype)
        if not wrt_params:
            return dx
        tokens = tuple(range(x.ndim - 1))
        return dx, (dy * x_hat).sum(axis=tokens).astype(x.dtype), dy.sum(axis=tokens, dtype="float64").astype(x.dtype)

    return ops.layer_norm(x, w, b, eps=eps), pullback
