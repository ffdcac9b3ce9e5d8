"""Every op once, as the textbook has it, in NumPy or CuPy arrays. In float64 this file is the truth that all else is measured by.

Images are [B, H, W, C], tokens [B, S, C], attention heads [B, N, S, D]. dtype in = dtype out; float16 accumulates in float32.
Each function is the lowest rung of the ladder of its name; the contracts stand in the façade (`ops/__init__.py`).
"""

import math

import numpy as np

from ..backend import array_module
from .dispatch import dispatch, rung


def wide(x):
    """The dtype that sums are kept in: float32 for float16, else the array's own."""
    return np.dtype("float32") if x.dtype == np.float16 else x.dtype


@rung("linear", "reference", owner="any")
def linear(x, w, b, *, skip=None):
    """y = x Wᵀ + b + skip, one matrix product."""
    y = x.astype(wide(x), copy=False) @ w.astype(wide(x), copy=False).T
    for term in (b, skip):
        y = y if term is None else y + term
    return y.astype(x.dtype, copy=False)


@rung("conv2d", "reference", owner="any")
def conv2d(x, w, b, *, stride, padding, embedding=None, skip=None):
    """y[h, w] = Σᵢⱼ x[s·h + i, s·w + j] W[i, j] + b + embedding + skip: one matrix product for each of the KH·KW taps, summed."""
    (top, bottom), (left, right) = padding
    x_padded = array_module(x).pad(x.astype(wide(x), copy=False), ((0, 0), (top, bottom), (left, right), (0, 0)))
    taps = w.astype(wide(x), copy=False).transpose(2, 3, 1, 0)  # [KH, KW, C, C′]
    KH, KW = taps.shape[:2]
    H = (x_padded.shape[1] - KH) // stride + 1
    W = (x_padded.shape[2] - KW) // stride + 1
    y = 0.0 if b is None else b.astype(wide(x), copy=False)
    for i in range(KH):
        for j in range(KW):
            y = y + x_padded[:, i : i + stride * H : stride, j : j + stride * W : stride] @ taps[i, j]
    y = y if embedding is None else y + embedding[:, None, None]
    y = y if skip is None else y + skip
    return y.astype(x.dtype, copy=False)


@rung("upsample_nearest", "reference", owner="any")
def upsample_nearest(x, *, size):
    """y[h, w] = x[h // 2, w // 2], cut to `size`: the odd sizes of a U that came down by rounding up."""
    H, W = size
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, :H, :W]


@rung("upsample_conv2d", "reference", owner="any")
def upsample_conv2d(x, w, b, *, size):
    """conv2d(upsample_nearest(x)) with padding 1."""
    return dispatch("conv2d", dispatch("upsample_nearest", x, size=size), w, b, stride=1, padding=((1, 1), (1, 1)))


@rung("group_norm", "reference", owner="any")
def group_norm(x, w, b, *, groups, eps, act):
    """y = (x − μ) / √(σ² + ε) · γ + β, with μ and the biased σ² over each group of channels and all pixels; sums in float64."""
    xp = array_module(x)
    B, C = x.shape[0], x.shape[-1]
    g = x.reshape(B, math.prod(x.shape[1:-1]), groups, C // groups).astype("float64")  # [B, S, G, C/G]
    mean = g.mean(axis=(1, 3), keepdims=True)
    variance = ((g - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    y = ((g - mean) / xp.sqrt(variance + eps)).reshape(x.shape) * w + b
    return (silu(y) if act == "silu" else y).astype(x.dtype)


@rung("layer_norm", "reference", owner="any")
def layer_norm(x, w, b, *, eps):
    """y = (x − μ) / √(σ² + ε) · γ + β, with μ and the biased σ² over the channels of each token; sums in float64."""
    xp = array_module(x)
    d = x.astype("float64")
    d = d - d.mean(axis=-1, keepdims=True)
    variance = (d**2).mean(axis=-1, keepdims=True)
    return (d / xp.sqrt(variance + eps) * w + b).astype(x.dtype)


@rung("softmax", "reference", owner="any")
def softmax(x):
    """y = exp(x − max x) / Σ exp(x − max x) over the last axis."""
    xp = array_module(x)
    e = xp.exp(x.astype(wide(x), copy=False) - x.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True)).astype(x.dtype, copy=False)


@rung("attention", "reference", owner="any")
def attention(q, k, v, *, scale, mask, causal):
    """softmax(scale · Q Kᵀ + mask) V, with the whole [B, N, S, T] score matrix in memory."""
    q_wide, k_wide, v_wide = (a.astype(wide(q), copy=False) for a in (q, k, v))
    scores = q_wide @ k_wide.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores + causal_mask(scores.shape[-2:], scores.dtype, array_module(q))
    return (softmax(scores) @ v_wide).astype(q.dtype, copy=False)


def causal_mask(shape, dtype, xp):
    """[S, T] with −∞ where the key comes after the query, 0 elsewhere; the last query sees every key."""
    S, T = shape
    return xp.triu(xp.full((S, T), -math.inf, dtype=dtype), k=1 + T - S)


@rung("silu", "reference", owner="any")
def silu(x):
    """y = x / (1 + e⁻ˣ)."""
    x_wide = x.astype(wide(x), copy=False)
    with np.errstate(over="ignore"):  # e⁻ˣ = ∞ makes the quotient −0, as it should be
        return (x_wide / (1.0 + array_module(x).exp(-x_wide))).astype(x.dtype, copy=False)


@rung("quick_gelu", "reference", owner="any")
def quick_gelu(x):
    """y = x · sigmoid(1.702 x): OpenAI's stand-in for GELU, in CLIP ViT-L/14."""
    x_wide = x.astype(wide(x), copy=False)
    return (silu(1.702 * x_wide) / 1.702).astype(x.dtype, copy=False)


def erfc(x):
    """1 − erf(x) in float64, correct to the last digit even where it is 1e-300: C's own, one element at a time."""
    if array_module(x) is not np:
        from cupyx.scipy.special import erfc as device_erfc

        return device_erfc(x)
    return np.asarray(np.frompyfunc(math.erfc, 1, 1)(x), dtype="float64")


@rung("gelu", "reference", owner="any")
def gelu(x):
    """y = x Φ(x) = x · erfc(−x/√2) / 2: the exact form, not the tanh approximation (which is 1e-4 off).

    erfc(−u) is 1 + erf(u) without its cancellation: for x < 0 the sum of 1 and almost −1 would lose every digit.
    """
    x64 = x.astype("float64")
    return (0.5 * x64 * erfc(-math.sqrt(0.5) * x64)).astype(x.dtype)


@rung("geglu", "reference", owner="any")
def geglu(x):
    """y = h · GELU(g) for x = [h, g], the two halves of the channels."""
    C = x.shape[-1] // 2
    return x[..., :C] * gelu(x[..., C:])


@rung("feed_forward", "reference", owner="any")
def feed_forward(x, w_in, b_in, w_out, b_out, *, skip=None):
    """linear(geglu(linear(x))) + skip."""
    return dispatch("linear", dispatch("geglu", dispatch("linear", x, w_in, b_in)), w_out, b_out, skip=skip)


@rung("embedding", "reference", owner="any")
def embedding(ids, table):
    """y[i] = table[ids[i]]."""
    return table[ids]


@rung("timestep_embedding", "reference", owner="any")
def timestep_embedding(t, *, dim, flip_sin_to_cos, freq_shift, dtype):
    """[cos(t ωᵢ), sin(t ωᵢ)] with ωᵢ = 10000^(−i / (dim/2 − shift))."""
    xp = array_module(t)
    half = dim // 2
    # torch forms exponent, frequency and phase in float32 even for a float64 model, and t ≈ 1000 magnifies their rounding to 6e-5:
    # to give diffusers' pictures float32 rounds at the same places. float64 is the truth and does not round.
    step = np.dtype("float64" if dtype == np.float64 else "float32")
    exponent = (step.type(-math.log(10000.0)) * xp.arange(half, dtype=step)) / step.type(half - freq_shift)
    frequency = xp.exp(exponent.astype("float64")).astype(step)
    phase = (t.astype(step)[:, None] * frequency).astype("float64")  # [B, dim/2]
    parts = (xp.cos(phase), xp.sin(phase)) if flip_sin_to_cos else (xp.sin(phase), xp.cos(phase))
    y = xp.concatenate(parts, axis=-1).astype(dtype)
    return xp.pad(y, ((0, 0), (0, dim - 2 * half)))  # an odd width ends in a zero
