"""ONNX operators by calls of `minisd.ops`: what the standard says with other axes, groups or dilations, in terms of our contract.

An adapter takes a node's inputs and attributes and returns its outputs. Only the façade computes; NumPy moves axes, cuts and pads.
What the façade cannot mean raises `NotOurs` with the reason. ONNX's layout is [B, C, ...], ours [B, ..., C].
"""

import math

import numpy as np
from onnx.reference.op_run import OpRun

from .. import ops


class NotOurs(Exception):
    """The node asks for something that no op of minisd does."""


class Facade:
    """minisd.ops, remembering which of its functions were called."""

    def __init__(self):
        self.called: set[str] = set()

    def __getattr__(self, name):
        self.called.add(name)
        return getattr(ops, name)


facade = Facade()


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def channels_first(x):
    return np.moveaxis(x, -1, 1)


# ----- linear ----------------------------------------------------------------------------------------------------------------


def gemm(a, b, c=None, *, alpha, beta, transA, transB, broadcast=1):
    """y = α A B + β C, where C is broadcast (the first versions of the operator had a switch for that)."""
    x, w = (a.T if transA else a), (b if transB else b.T)
    if c is None or alpha == beta == 1.0 and c.shape == w.shape[:1]:
        return facade.linear(x, w, c) if c is not None else alpha * facade.linear(x, w)
    return alpha * facade.linear(x, w) + beta * c


def matmul(a, b):
    """Batches are broadcast, vectors are a row or a column: one `linear` for each pair of matrices."""
    rows, columns = np.atleast_2d(a), b if b.ndim > 1 else b[:, None]
    lead = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    rows, columns = (np.broadcast_to(m, lead + m.shape[-2:]) for m in (rows, columns))
    y = np.empty((*lead, rows.shape[-2], columns.shape[-1]), dtype=a.dtype)
    for i in np.ndindex(lead):
        y[i] = facade.linear(rows[i], columns[i].T)
    return y.reshape(lead + a.shape[-2:-1] * (a.ndim > 1) + b.shape[-1:] * (b.ndim > 1))


def gather(table, ids, *, axis):
    """Row numbers may count from the end; another axis is moved to the front; integers stand for shapes, which are no embeddings."""
    if table.dtype.kind != "f":
        return np.take(table, ids, axis=axis)
    table = np.moveaxis(table, axis, 0)
    y = facade.embedding(np.where(ids < 0, ids + len(table), ids), table.reshape(len(table), -1))
    y = y.reshape(ids.shape + table.shape[1:])
    first = axis % table.ndim
    return np.moveaxis(y, range(ids.ndim), range(first, first + ids.ndim))


# ----- convolution -----------------------------------------------------------------------------------------------------------


def conv(x, w, b=None, *, auto_pad, dilations, group, kernel_shape, pads, strides):
    """Cross-correlation in 1, 2 or 3 dimensions."""
    n = w.ndim - 2
    dilations, strides = dilations or [1] * n, strides or [1] * n
    w = spread(w, dilations)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((-(-size // s) - 1) * s + k - size, 0) for size, s, k in zip(x.shape[2:], strides, w.shape[2:])]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto_pad == "SAME_UPPER" else large + small
    pads = [0] * 2 * n if auto_pad == "VALID" or pads is None else pads
    return grouped(x, w, b, group, list(zip(pads[:n], pads[n:])), strides)


def conv_transpose(x, w, b=None, *, auto_pad, dilations, group, kernel_shape, output_padding, output_shape, pads, strides):
    """The transpose of `conv`: a convolution of the image spread with zeros, by the flipped kernel with its channels swapped."""
    n = w.ndim - 2
    dilations, strides, output_padding = dilations or [1] * n, strides or [1] * n, output_padding or [0] * n
    w = spread(w, dilations)
    whole = [s * (size - 1) + o + k for size, s, o, k in zip(x.shape[2:], strides, output_padding, w.shape[2:])]
    if auto_pad.startswith("SAME") or output_shape:
        output_shape = output_shape or [size * s for size, s in zip(x.shape[2:], strides)]
        total = [a - b for a, b in zip(whole, output_shape)]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto_pad == "SAME_UPPER" else large + small
    pads = pads or [0] * 2 * n
    C, C_out = w.shape[0] // group, w.shape[1]
    flipped = np.flip(w.reshape(group, C, C_out, *w.shape[2:]).swapaxes(1, 2), axis=range(3, 3 + n)).reshape(group * C_out, C, *w.shape[2:])
    sides = [(k - 1 - low, k - 1 - high + o) for k, low, high, o in zip(w.shape[2:], pads[:n], pads[n:], output_padding)]
    return grouped(spread(x, strides), flipped, b, group, sides, [1] * n)


def spread(x, steps):
    """[.., k, ..] -> [.., (k − 1) · step + 1, ..] with zeros between: what dilation means."""
    y = np.zeros((*x.shape[:2], *((k - 1) * s + 1 for k, s in zip(x.shape[2:], steps))), dtype=x.dtype)
    y[(..., *(slice(None, None, s) for s in steps))] = x
    return y


def grouped(x, w, b, groups, sides, strides):
    """Each group of channels has its own kernels."""
    biases = [None] * groups if b is None else np.split(b, groups)
    parts = [conv_nd(*part, sides, strides) for part in zip(np.split(x, groups, axis=1), np.split(w, groups), biases)]
    return np.concatenate(parts, axis=1)


def conv_nd(x, w, b, sides, strides):
    """One dimension is an image of height 1; three are the sum over the depth of the kernel of two."""
    if w.ndim == 3:
        return conv_nd(x[:, :, None], w[:, :, None], b, [(0, 0), *sides], [1, *strides])[:, :, 0]
    if w.ndim == 5:
        x = np.pad(x, ((0, 0), (0, 0), sides[0], (0, 0), (0, 0)))
        depth = (x.shape[2] - w.shape[2]) // strides[0] + 1
        total = None
        for i in range(w.shape[2]):
            frames = x[:, :, i : i + (depth - 1) * strides[0] + 1 : strides[0]].swapaxes(1, 2)  # [B, depth, C, H, W]
            y = conv_nd(frames.reshape(-1, *frames.shape[2:]), w[:, :, i], b if i == 0 else None, sides[1:], strides[1:])
            total = y if total is None else total + y
        return total.reshape(len(x), depth, *total.shape[1:]).swapaxes(1, 2)
    same = strides[0] == strides[1]
    y = facade.conv2d(channels_last(x), w, b, stride=strides[0] if same else 1, padding=tuple(sides))
    return channels_first(y if same else y[:, :: strides[0], :: strides[1]])


# ----- norms -----------------------------------------------------------------------------------------------------------------


def group_normalization(x, scale, bias, *, epsilon, num_groups, stash_type):
    return channels_first(facade.group_norm(channels_last(x), scale, bias, groups=num_groups, eps=epsilon))


def instance_normalization(x, scale, bias, *, epsilon):
    """A group for each channel."""
    return channels_first(facade.group_norm(channels_last(x), scale, bias, groups=x.shape[1], eps=epsilon))


def layer_normalization(x, scale, bias=None, *, axis, epsilon, stash_type):
    """The axes from `axis` on are our channels. The second and third output, mean and 1/σ, are NumPy's."""
    rows = x.reshape(*x.shape[: axis % x.ndim], math.prod(x.shape[axis:]))
    w, b = (np.broadcast_to(np.asarray(0 if a is None else a, dtype=x.dtype), x.shape[axis:]).ravel() for a in (scale, bias))
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return facade.layer_norm(rows, w, b, eps=epsilon).reshape(x.shape), mean, 1 / np.sqrt(variance + x.dtype.type(epsilon))


def rms_normalization(x, scale, *, axis, epsilon, stash_type):
    """[x, −x] has mean 0 and the variance that x has as mean square: its layer norm begins with the RMS norm of x."""
    rows = x.reshape(*x.shape[: axis % x.ndim], math.prod(x.shape[axis:]))
    w = np.broadcast_to(scale, x.shape[axis:]).ravel()
    y = facade.layer_norm(np.concatenate([rows, -rows], axis=-1), np.concatenate([w, w]), np.zeros_like(w).repeat(2), eps=epsilon)
    return y[..., : len(w)].reshape(x.shape)


# ----- attention -------------------------------------------------------------------------------------------------------------


def softmax(x, *, axis):
    return np.moveaxis(facade.softmax(np.moveaxis(x, axis, -1)), -1, axis)


def attention(q, k, v, mask=None, past_key=None, past_value=None, lengths=None, *, is_causal, kv_num_heads, q_num_heads,
              qk_matmul_output_mode, scale, softcap, softmax_precision):  # fmt: skip
    """Heads are cut out of channels, fewer keys than queries are repeated, an old cache stands before the keys, masks become additive."""
    if softcap:
        raise NotOurs("Attention with softcap: a tanh of the scores, which no Stable Diffusion has")
    packed = q.ndim == 3
    if packed:
        q, k, v = heads(q, q_num_heads), heads(k, kv_num_heads), heads(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    S, T, repeats = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    # Query s sees the keys up to past + s. Without those that no query sees, that is our mask, whose last query sees the last key.
    ours = bool(is_causal) and past + S <= T
    seen = past + S if ours else T
    bias = np.zeros((1, 1, S, T), dtype=q.dtype)
    if mask is not None:
        mask = np.where(mask, 0.0, -math.inf) if mask.dtype == bool else mask
        bias = bias + np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, T - mask.shape[-1])], constant_values=-math.inf)
    if is_causal and not ours:
        bias = np.where(np.arange(T) > past + np.arange(S)[:, None], -math.inf, bias)
    if lengths is not None:
        bias = np.where(np.arange(T) >= lengths[:, None, None, None], -math.inf, bias)
    bias = bias[..., :seen].astype(q.dtype)
    keys, values = (a[:, :, :seen].repeat(repeats, axis=1) for a in (k, v))
    y = facade.attention(q, keys, values, scale=scale or 1 / math.sqrt(q.shape[3]), causal=ours, mask=bias if bias.any() else None)
    return (y.swapaxes(1, 2).reshape(len(y), S, -1) if packed else y), k, v


def heads(x, n):
    """[B, S, N·D] -> [B, N, S, D]"""
    return x.reshape(*x.shape[:2], n, -1).swapaxes(1, 2)


# ----- functions of one number -----------------------------------------------------------------------------------------------


def sigmoid(x):
    """eˣ / (eˣ + e⁰): the softmax of [x, 0]."""
    return facade.softmax(np.stack([x, np.zeros_like(x)], axis=-1))[..., 0]


def tanh(x):
    """(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ): from the softmax of [x, −x]."""
    p = facade.softmax(np.stack([x, -x], axis=-1))
    return p[..., 0] - p[..., 1]


def swish(x, *, alpha):
    """x sigmoid(αx) = silu(αx) / α"""
    return facade.silu(x * x.dtype.type(alpha)) / x.dtype.type(alpha)


def gelu(x, *, approximate):
    """The tanh form is x sigmoid(u) with u = c x and c = √(8/π) (1 + 0.044715 x²), hence silu(u) / c."""
    if approximate == "none":
        return facade.gelu(x)
    c = x.dtype.type(math.sqrt(8 / math.pi)) * (1 + x.dtype.type(0.044715) * x * x)
    return facade.silu(c * x) / c


def erf(x):
    """gelu(u) + gelu(−u) = u erf(u/√2)"""
    u = x * x.dtype.type(math.sqrt(2))
    return (facade.gelu(u) + facade.gelu(-u)) / np.where(u == 0, 1, u).astype(u.dtype)


def mish(x):
    """x tanh(ln(1 + eˣ)) = x n / (n + 2) with n = eˣ (eˣ + 2), hence x sigmoid(x + ln(1 + eˣ/2))."""
    return x * sigmoid(x + np.logaddexp(x - x.dtype.type(math.log(2)), x.dtype.type(0)))


def sine(x):
    """The first frequency of the time embedding is 1."""
    return facade.timestep_embedding(x.ravel(), dim=2, flip_sin_to_cos=False, freq_shift=0, dtype=x.dtype)[:, 0].reshape(x.shape)


def cosine(x):
    return facade.timestep_embedding(x.ravel(), dim=2, flip_sin_to_cos=True, freq_shift=0, dtype=x.dtype)[:, 0].reshape(x.shape)


# ----- resizing --------------------------------------------------------------------------------------------------------------


def upsample(x, scales, *, mode):
    return doubled(x, scales, mode)


def resize(x, roi=None, scales=None, sizes=None, *, mode, **others):
    return doubled(x, scales, mode)


def doubled(x, scales, mode):
    if mode != "nearest" or scales is None or list(scales) != [1, 1, 2, 2]:
        raise NotOurs("Resize to any size: ours doubles by repetition, as SD's upsamplers do")
    return channels_first(facade.upsample_nearest(channels_last(x), size=(2 * x.shape[2], 2 * x.shape[3])))


TABLE = {
    "Attention": attention, "Conv": conv, "ConvTranspose": conv_transpose, "Cos": cosine, "Erf": erf, "Gather": gather, "Gelu": gelu, "Gemm": gemm,
    "GroupNormalization": group_normalization, "InstanceNormalization": instance_normalization, "LayerNormalization": layer_normalization,
    "MatMul": matmul, "Mish": mish, "RMSNormalization": rms_normalization, "Resize": resize, "Sigmoid": sigmoid, "Sin": sine, "Softmax": softmax,
    "Swish": swish, "Tanh": tanh, "Upsample": upsample,
}  # fmt: skip


def as_operator(name, adapter):
    """An adapter as a class that onnx.reference runs instead of its own; bfloat16, which NumPy lacks, is computed in float32."""

    def run(self, *inputs, **attributes):
        inputs = [None if a is None else np.asarray(a) for a in inputs]
        brain = [a.dtype for a in inputs if a is not None and a.dtype.name == "bfloat16"]
        outputs = adapter(*(a.astype("float32") if brain and a is not None and a.dtype == brain[0] else a for a in inputs), **attributes)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if len(self.onnx_node.output) > len(outputs):
            raise NotOurs(f"{self.onnx_node.op_type} with a further output, {self.onnx_node.output[-1]}: our op does not hand it out")
        return tuple(y.astype(brain[0]) if brain and y.dtype == np.float32 else y for y in outputs)

    return type(name, (OpRun,), {"op_domain": "", "_run": run})


OPERATORS = [as_operator(name, adapter) for name, adapter in TABLE.items()]
