"""The primitives of Stable Diffusion: one function an op, with its contract; what runs is the best rung of its ladder.

    >>> from minisd import ops
    >>> print(ops.explain("conv2d"))                    # doctest: +SKIP

Images are [B, H, W, C], tokens [B, S, C], attention heads [B, N, S, D], on the CPU (NumPy) or the GPU (CuPy). dtype in = dtype out:
float16, float32 or float64; sums and statistics are kept in float32 or wider. No op has a default for eps, groups, scale or the
kind of GELU: three admired ports ship a wrong epsilon behind one.

The ladders: `reference.py` has every op as the textbook has it; `cpu/` the fast rungs in NumPy, `cuda/` those for the GPU.
"""

import math

import numpy as np

from ..backend import array_module
from ..errors import ContractError, UsageError
from . import reference as _reference  # the lowest rung of every ladder registers first
from . import cpu as _cpu  # noqa: F401  importing registers its rungs
from . import cuda as _cuda  # noqa: F401  likewise, for CuPy arrays; loads no CuPy
from .dispatch import RUNGS, dispatch, explaining, ladder, using

__all__ = [
    "RUNGS", "attention", "conv2d", "embedding", "explain", "feed_forward", "geglu", "gelu", "group_norm", "layer_norm", "linear", "quick_gelu",
    "silu", "softmax", "timestep_embedding", "upsample_conv2d",
    "upsample_nearest", "using",
]  # fmt: skip


FLOATS = frozenset(np.dtype(name) for name in ("float16", "float32", "float64"))


def _expect(condition, op: str, problem: str, fix: str = "compare the shapes with the contract in the docstring of this op"):
    if not condition:
        raise ContractError(f"ops.{op}: {problem}", "", fix)


def _expect_floats(op: str, **arrays):
    """All arrays are floating point and of one dtype."""
    for name, a in arrays.items():
        _expect(a is None or hasattr(a, "dtype"), op, f"{name} is a {type(a).__name__}, not an array", "numpy.asarray(…, dtype='float32')")
    kinds = {name: a.dtype for name, a in arrays.items() if a is not None}
    first = next(iter(kinds.values()))
    if first in FLOATS and all(dtype == first for dtype in kinds.values()):
        return  # the messages below take longer to write than a small op to run
    _expect(first in FLOATS, op, f"expected float16, float32 or float64, got {first}", "convert with .astype('float32')")
    for name, dtype in kinds.items():
        _expect(dtype == first, op, f"{name} is {dtype}, the first argument {first}", "convert one of them; nothing is promoted silently")


def _expect_skip(op: str, skip, shape: tuple):
    _expect(skip is None or skip.shape == shape, op, f"skip {skip is not None and skip.shape} is not as the result, {shape}")


def linear(x, w, b=None, *, skip=None):
    """y = x Wᵀ + b, then + skip where there is one.

    x [..., C], w [C′, C], b [C′] or None, skip [..., C′] or None -> [..., C′]        torch `F.linear`
    """
    _expect_floats("linear", x=x, w=w, b=b, skip=skip)
    _expect(w.ndim == 2 and x.ndim >= 1 and x.shape[-1] == w.shape[1], "linear", f"x {x.shape} does not fit w {w.shape}")
    _expect(b is None or b.shape == w.shape[:1], "linear", f"b {b is not None and b.shape} does not fit w {w.shape}")
    _expect_skip("linear", skip, (*x.shape[:-1], len(w)))
    return dispatch("linear", x, w, b, skip=skip)


def conv2d(x, w, b=None, *, stride=1, padding, embedding=None, skip=None):
    """y[b, h, w, o] = Σ_{i, j, c} x[b, s·h + i, s·w + j, c] · w[o, c, i, j] + b[o], x padded with zeros; then + embedding[b, o] + skip[b, h, w, o].

    x [B, H, W, C], w [C′, C, KH, KW] (the checkpoint's shape), b [C′], embedding [B, C′] and skip [B, H′, W′, C′] or None -> [B, H′, W′, C′]
    padding: p for all sides, or ((top, bottom), (left, right)); H′ = (H + top + bottom − KH) // stride + 1        torch `F.conv2d`
    """
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    _expect(len(padding) == 2 and all(isinstance(side, tuple) and len(side) == 2 for side in padding), "conv2d",
            f"padding {padding} is neither a number nor ((top, bottom), (left, right))")  # fmt: skip
    _expect_floats("conv2d", x=x, w=w, b=b, embedding=embedding, skip=skip)
    _expect(x.ndim == 4 and w.ndim == 4 and x.shape[3] == w.shape[1], "conv2d", f"x {x.shape} does not fit w {w.shape}")
    _expect(b is None or b.shape == w.shape[:1], "conv2d", f"b {b is not None and b.shape} does not fit w {w.shape}")
    _expect(stride >= 1 and all(p >= 0 for side in padding for p in side), "conv2d", f"stride {stride}, padding {padding}")
    for n, k, side in zip(x.shape[1:3], w.shape[2:], padding):
        _expect(n + sum(side) >= k, "conv2d", f"the kernel {w.shape[2:]} is larger than the padded image {x.shape[1:3]} + {padding}")
    if embedding is not None:
        _expect(embedding.shape == (len(x), len(w)), "conv2d", f"embedding {embedding.shape} is not [B, C′] = {(len(x), len(w))}")
    if skip is not None:
        H, W = ((n + sum(side) - k) // stride + 1 for n, k, side in zip(x.shape[1:3], w.shape[2:], padding))
        _expect_skip("conv2d", skip, (len(x), H, W, len(w)))
    return dispatch("conv2d", x, w, b, stride=stride, padding=padding, embedding=embedding, skip=skip)


def upsample_nearest(x, *, size):
    """Doubles height and width by repeating every pixel, then cuts to `size` = (H′, W′) with 2H − 1 <= H′ <= 2H.

    x [B, H, W, C] -> [B, H′, W′, C]        equals torch `F.interpolate(x, size, mode="nearest")` for these sizes
    """
    _expect(x.ndim == 4, "upsample_nearest", f"x {x.shape} is not [B, H, W, C]")
    fits = len(size) == 2 and all(2 * n - 1 <= m <= 2 * n for n, m in zip(x.shape[1:3], size))
    _expect(fits, "upsample_nearest", f"{x.shape[1:3]} cannot become {tuple(size)}: only 2n or 2n − 1")
    return dispatch("upsample_nearest", x, size=tuple(size))


def upsample_conv2d(x, w, b=None, *, size):
    """conv2d(upsample_nearest(x, size=size), w, b, padding=1): both in one op, because nearly all of its products are the same.

    x [B, H, W, C], w [C′, C, 3, 3], b [C′] or None -> [B, H′, W′, C′], (H′, W′) = size        diffusers `Upsample2D`
    """
    _expect_floats("upsample_conv2d", x=x, w=w, b=b)
    _expect(x.ndim == 4 and w.ndim == 4 and x.shape[3] == w.shape[1], "upsample_conv2d", f"x {x.shape} does not fit w {w.shape}")
    _expect(w.shape[2:] == (3, 3), "upsample_conv2d", f"w {w.shape} is no 3×3 kernel")
    _expect(b is None or b.shape == w.shape[:1], "upsample_conv2d", f"b {b is not None and b.shape} does not fit w {w.shape}")
    for n, m in zip(x.shape[1:3], size):
        _expect(2 * n - 1 <= m <= 2 * n, "upsample_conv2d", f"{tuple(x.shape[1:3])} cannot become {tuple(size)}: only 2n or 2n − 1")
    return dispatch("upsample_conv2d", x, w, b, size=tuple(size))


def group_norm(x, w, b, *, groups, eps, act=None):
    """y = (x − μ) / √(σ² + ε) · γ + β, with μ and the biased σ² over each group of C/G channels and all pixels of one image.

    x [B, ..., C], w = γ [C], b = β [C] -> [B, ..., C]; act="silu" applies SiLU to the result.        Wu & He, arXiv:1803.08494
    """
    _expect_floats("group_norm", x=x, w=w, b=b)
    _expect(x.ndim >= 2, "group_norm", f"x {x.shape} is not [B, ..., C]")
    C = x.shape[-1]
    _expect(w.shape == (C,) and b.shape == (C,), "group_norm", f"x {x.shape} does not fit w {w.shape}, b {b.shape}")
    _expect(groups >= 1 and C % groups == 0, "group_norm", f"{C} channels cannot be cut into {groups} groups")
    _expect(act in (None, "silu"), "group_norm", f"act={act!r} is not None or 'silu'")
    return dispatch("group_norm", x, w, b, groups=groups, eps=eps, act=act)


def layer_norm(x, w, b, *, eps):
    """y = (x − μ) / √(σ² + ε) · γ + β, with μ and the biased σ² over the channels of each token.

    x [..., C], w = γ [C], b = β [C] -> [..., C]        Ba et al., arXiv:1607.06450
    """
    _expect_floats("layer_norm", x=x, w=w, b=b)
    _expect(w.shape == x.shape[-1:] and b.shape == x.shape[-1:], "layer_norm", f"x {x.shape} does not fit w {w.shape}, b {b.shape}")
    return dispatch("layer_norm", x, w, b, eps=eps)


def softmax(x):
    """y = exp(x − max x) / Σ exp(x − max x) over the last axis.

    x [..., T] -> [..., T], rows sum to 1
    """
    _expect_floats("softmax", x=x)
    return dispatch("softmax", x)


def attention(q, k, v, *, scale, mask=None, causal=False):
    """softmax(scale · Q Kᵀ + mask) V for every head.

    q [B, N, S, D], k [B, N, T, D], v [B, N, T, D′], mask additive and broadcastable to [B, N, S, T] -> [B, N, S, D′]
    causal: query s sees the keys up to s (counted from the end where S < T).        Vaswani et al., arXiv:1706.03762
    """
    _expect_floats("attention", q=q, k=k, v=v, mask=mask)
    _expect(q.ndim == k.ndim == v.ndim == 4, "attention", f"q {q.shape}, k {k.shape}, v {v.shape} are not [B, N, S, D]")
    fits = q.shape[:2] == k.shape[:2] == v.shape[:2] and q.shape[3] == k.shape[3] and k.shape[2] == v.shape[2] > 0
    _expect(fits, "attention", f"q {q.shape}, k {k.shape}, v {v.shape} do not fit")
    _expect(not causal or q.shape[2] <= k.shape[2], "attention", f"causal with {q.shape[2]} queries but {k.shape[2]} keys")
    if mask is not None:
        scores = (*q.shape[:3], k.shape[2])
        fits = mask.ndim <= 4 and all(m in (1, n) for m, n in zip(reversed(mask.shape), reversed(scores)))
        _expect(fits, "attention", f"mask {mask.shape} cannot be broadcast to [B, N, S, T] = {scores}")
        if causal:  # one mask for both, so that the check below sees what is left
            mask, causal = mask + _reference.causal_mask(scores[2:], mask.dtype, array_module(mask)), False
        _expect((mask.max(axis=-1) > -math.inf).all(), "attention", "the mask has a row of −∞: that query sees no key",
                "leave at least one key in every row; drop the queries that have none")  # fmt: skip
    return dispatch("attention", q, k, v, scale=scale, mask=mask, causal=causal)


def silu(x):
    """y = x · sigmoid(x) = x / (1 + e⁻ˣ).        x of any shape        Elfwing et al., arXiv:1702.03118"""
    _expect_floats("silu", x=x)
    return dispatch("silu", x)


def gelu(x):
    """y = x Φ(x) = x · (1 + erf(x/√2)) / 2, the exact form.        x of any shape        Hendrycks & Gimpel, arXiv:1606.08415"""
    _expect_floats("gelu", x=x)
    return dispatch("gelu", x)


def quick_gelu(x):
    """y = x · sigmoid(1.702 x).        x of any shape        OpenAI CLIP `QuickGELU`"""
    _expect_floats("quick_gelu", x=x)
    return dispatch("quick_gelu", x)


def geglu(x):
    """y = h · GELU(g) for x = [h, g].

    x [..., 2C] -> [..., C]        Shazeer, arXiv:2002.05202; diffusers `GEGLU` behind its projection
    """
    _expect_floats("geglu", x=x)
    _expect(x.shape[-1] % 2 == 0, "geglu", f"x {x.shape} has no two halves")
    return dispatch("geglu", x)


def feed_forward(x, w_in, b_in, w_out, b_out, *, skip=None):
    """y = W′ (h · GELU(g)) + b′ with [h, g] = W x + b, then + skip: linear, GEGLU and linear in one op, so that the wide middle need not be stored.

    x [..., C], w_in = W [2D, C], b_in [2D], w_out = W′ [C′, D], b_out [C′], skip [..., C′] or None -> [..., C′]        diffusers `FeedForward`
    """
    _expect_floats("feed_forward", x=x, w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out, skip=skip)
    fits = w_in.ndim == w_out.ndim == 2 and x.shape[-1] == w_in.shape[1] and w_in.shape[0] == 2 * w_out.shape[1]
    fits = fits and b_in.shape == w_in.shape[:1] and b_out.shape == w_out.shape[:1]
    _expect(fits, "feed_forward", f"x {x.shape}, w_in {w_in.shape}, b_in {b_in.shape}, w_out {w_out.shape}, b_out {b_out.shape} do not fit")
    _expect_skip("feed_forward", skip, (*x.shape[:-1], len(w_out)))
    return dispatch("feed_forward", x, w_in, b_in, w_out, b_out, skip=skip)


def embedding(ids, table):
    """y = table[ids].

    ids [...] integers in 0 … V−1, table [V, C] -> [..., C]
    """
    _expect(ids.dtype.kind in "iu", "embedding", f"ids are {ids.dtype}, not integers")
    _expect(table.ndim == 2, "embedding", f"the table {table.shape} is not [V, C]")
    if ids.size:
        low, high = int(ids.min()), int(ids.max())
        _expect(0 <= low and high < table.shape[0], "embedding", f"ids {low} … {high} lie outside the table of {table.shape[0]} rows",
                "use the tokenizer that belongs to this model")  # fmt: skip
    return dispatch("embedding", ids, table)


def timestep_embedding(t, *, dim, flip_sin_to_cos, freq_shift, dtype):
    """[sin(t ωᵢ), cos(t ωᵢ)] with ωᵢ = 10000^(−i / (dim/2 − freq_shift)), cosines first if flip_sin_to_cos.

    t [B] timesteps 0 … 999, whole or fractional -> [B, dim] of `dtype`
    Ho et al., arXiv:2006.11239; diffusers `get_timestep_embedding`
    """
    _expect(t.ndim == 1, "timestep_embedding", f"t {t.shape} is not [B]")
    return dispatch("timestep_embedding", t, dim=dim, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift, dtype=np.dtype(dtype))


def explain(op: str, *args, **kwargs) -> str:
    """The ladder of an op as text; with the arguments of a call: which rung would run, and why the others would not."""
    if op not in RUNGS:
        raise UsageError(f"no op is called {op!r}", "", f"the ops are {', '.join(sorted(RUNGS))}")
    if not args and not kwargs:
        return ladder(op)
    with explaining():  # the façade checks and completes the arguments, then dispatch answers with the ladder
        return globals()[op](*args, **kwargs)
