"""Calls of every op that are small and awkward: sizes 1 and prime, odd strides, large means, masks of −∞, logits × 36.

The inputs are drawn from `np.random.RandomState(seed)`, whose stream NumPy has frozen, so that only results need storing:
`tests/golden/ops.npz` holds for each case the float64 truth and what torch makes of it in float32 (`tools/make_golden_ops.py`).
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Case:
    """One call `op(*args, **kwargs)`. `build(draw)` returns args as float64 arrays (or integers, or None); see `inputs`."""

    op: str
    name: str
    build: Callable
    kwargs: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.op}/{self.name}"

    def inputs(self, dtype="float32") -> tuple:
        """The arguments in `dtype`; every value is a float32 number, so that float32 and float64 compute on the same one."""
        random = np.random.RandomState(zlib.crc32(self.id.encode()))

        def draw(*shape, scale=1.0, mean=0.0):
            return scale * random.randn(*shape) + mean

        return tuple(
            a.astype("float32").astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in self.build(draw)
        )

    def keywords(self, dtype="float32") -> dict:
        """The keyword arguments: a mask in `dtype`, and `dtype` itself for the one op that is told it."""
        kwargs = {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in self.kwargs.items()}
        return {**kwargs, "dtype": np.dtype(dtype)} if self.op == "timestep_embedding" else kwargs


CASES: list[Case] = []


def case(op, name, build, **kwargs):
    CASES.append(Case(op, name, build, kwargs))


# linear: x, w, b

case("linear", "one_number", lambda d: (d(1, 1), d(1, 1), d(1)))
case("linear", "vector", lambda d: (d(7), d(5, 7), d(5)))
case("linear", "matrix", lambda d: (d(3, 7), d(5, 7), d(5)))
case("linear", "no_bias", lambda d: (d(3, 7), d(5, 7), None))
case("linear", "leading_axes", lambda d: (d(2, 3, 1, 11), d(13, 11), d(13)))
case("linear", "long_sum", lambda d: (d(3, 1280), d(5, 1280, scale=0.03), d(5)))

# conv2d: x, w, b

ONE, NONE, VAE_DOWN = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
case("conv2d", "3x3", lambda d: (d(2, 7, 11, 5), d(3, 5, 3, 3), d(3)), stride=1, padding=ONE)
case("conv2d", "3x3_no_padding_no_bias", lambda d: (d(1, 5, 7, 3), d(4, 3, 3, 3), None), stride=1, padding=NONE)
case("conv2d", "one_pixel", lambda d: (d(1, 1, 1, 1), d(1, 1, 3, 3), d(1)), stride=1, padding=ONE)
case("conv2d", "one_row", lambda d: (d(1, 1, 13, 3), d(2, 3, 3, 3), d(2)), stride=1, padding=ONE)
case("conv2d", "stride_2_odd", lambda d: (d(1, 9, 7, 6), d(4, 6, 3, 3), d(4)), stride=2, padding=ONE)
case("conv2d", "stride_2_even", lambda d: (d(1, 8, 6, 6), d(4, 6, 3, 3), d(4)), stride=2, padding=ONE)
case("conv2d", "vae_down_even", lambda d: (d(1, 8, 6, 4), d(4, 4, 3, 3), d(4)), stride=2, padding=VAE_DOWN)
case("conv2d", "vae_down_odd", lambda d: (d(1, 7, 5, 4), d(4, 4, 3, 3), d(4)), stride=2, padding=VAE_DOWN)
case("conv2d", "stride_3", lambda d: (d(1, 11, 8, 2), d(3, 2, 3, 3), d(3)), stride=3, padding=ONE)
case("conv2d", "uneven_padding", lambda d: (d(1, 4, 5, 3), d(2, 3, 3, 3), d(2)), stride=1, padding=((2, 1), (0, 3)))
case("conv2d", "1x1", lambda d: (d(2, 5, 3, 7), d(11, 7, 1, 1), d(11)), stride=1, padding=NONE)
case("conv2d", "1x1_stride_2", lambda d: (d(1, 5, 4, 7), d(3, 7, 1, 1), d(3)), stride=2, padding=NONE)
case("conv2d", "1x1_padded", lambda d: (d(1, 3, 4, 5), d(3, 5, 1, 1), d(3)), stride=1, padding=ONE)
case("conv2d", "3x1", lambda d: (d(1, 6, 5, 3), d(2, 3, 3, 1), d(2)), stride=1, padding=((1, 1), (0, 0)))
case("conv2d", "5x5", lambda d: (d(1, 7, 6, 3), d(2, 3, 5, 5), d(2)), stride=1, padding=((2, 2), (2, 2)))
case("conv2d", "long_sum", lambda d: (d(1, 5, 3, 320), d(7, 320, 3, 3, scale=0.02), d(7)), stride=1, padding=ONE)

# upsample_nearest: x

case("upsample_nearest", "double", lambda d: (d(2, 3, 5, 2),), size=(6, 10))
case("upsample_nearest", "odd_height", lambda d: (d(1, 4, 3, 3),), size=(7, 6))
case("upsample_nearest", "odd_both", lambda d: (d(1, 4, 7, 1),), size=(7, 13))
case("upsample_nearest", "one_pixel_doubled", lambda d: (d(1, 1, 1, 3),), size=(2, 2))
case("upsample_nearest", "one_pixel_stays", lambda d: (d(1, 1, 1, 3),), size=(1, 1))
case("upsample_nearest", "long_odd", lambda d: (d(1, 1, 64, 1),), size=(1, 127))

# upsample_conv2d: x, w, b

case("upsample_conv2d", "double", lambda d: (d(2, 3, 5, 4), d(3, 4, 3, 3), d(3)), size=(6, 10))
case("upsample_conv2d", "odd_both_no_bias", lambda d: (d(1, 4, 3, 2), d(5, 2, 3, 3), None), size=(7, 5))

# group_norm: x, w, b


def _norm(*shape, scale=1.0, mean=0.0):
    return lambda d: (d(*shape, scale=scale, mean=mean), d(shape[-1], scale=0.2, mean=1.0), d(shape[-1]))


for eps in (1e-5, 1e-6):
    for mean in (0.0, 10.0, 1000.0):
        case("group_norm", f"mean_{mean:.0f}_eps_{eps:.0e}", _norm(2, 5, 7, 12, mean=mean), groups=3, eps=eps, act=None)
    case("group_norm", f"small_variance_eps_{eps:.0e}", _norm(1, 5, 3, 6, scale=0.003), groups=2, eps=eps, act=None)
case("group_norm", "one_group", _norm(1, 3, 5, 7), groups=1, eps=1e-5, act=None)
case("group_norm", "a_group_a_channel", _norm(2, 3, 5, 7), groups=7, eps=1e-5, act=None)
case("group_norm", "one_number_a_group", _norm(1, 1, 1, 5), groups=5, eps=1e-5, act=None)
case("group_norm", "tokens", _norm(2, 35, 12), groups=4, eps=1e-6, act=None)
case("group_norm", "vectors", _norm(3, 12), groups=4, eps=1e-6, act=None)
case("group_norm", "silu", _norm(1, 5, 7, 12), groups=3, eps=1e-5, act="silu")
case("group_norm", "silu_mean_1000", _norm(1, 5, 7, 12, mean=1000.0), groups=3, eps=1e-6, act="silu")
case("group_norm", "sd_320", _norm(1, 1, 3, 320), groups=32, eps=1e-5, act=None)

# layer_norm: x, w, b

for mean in (0.0, 10.0, 1000.0):
    case("layer_norm", f"mean_{mean:.0f}", _norm(3, 5, 13, mean=mean), eps=1e-5)
case("layer_norm", "small_variance", _norm(5, 13, scale=0.003), eps=1e-5)
case("layer_norm", "one_channel", _norm(3, 1), eps=1e-5)
case("layer_norm", "one_token", _norm(13), eps=1e-6)
case("layer_norm", "sd_320", _norm(2, 1, 320), eps=1e-5)

# softmax: x

case("softmax", "row", lambda d: (d(7),))
case("softmax", "rows", lambda d: (d(3, 2, 77),))
case("softmax", "one_column", lambda d: (d(5, 1),))
case("softmax", "large_numbers", lambda d: (d(5, 11, scale=20.0, mean=1e4),))
case("softmax", "large_negative_numbers", lambda d: (d(5, 11, scale=20.0, mean=-1e4),))
case("softmax", "large_logits", lambda d: (d(5, 11, scale=36.0),))
case("softmax", "masked", lambda d: (d(4, 6) + np.triu(np.full((4, 6), -math.inf), k=1),))

# attention: q, k, v, and the mask among the keywords


def _qkv(B, N, S, T, D, D_out=None, logits=1.0):
    return lambda d: (d(B, N, S, D, scale=logits), d(B, N, T, D), d(B, N, T, D_out or D))


def _attention(name, build, *, scale, mask=None, causal=False):
    mask = None if mask is None else np.asarray(mask, dtype="float32")
    case("attention", name, build, scale=scale, mask=mask, causal=causal)


_attention("square", _qkv(2, 3, 7, 7, 5), scale=5**-0.5)
_attention("cross", _qkv(1, 2, 13, 77, 8), scale=8**-0.5)
_attention("one_of_each", _qkv(1, 1, 1, 1, 1), scale=1.0)
_attention("one_query", _qkv(1, 2, 1, 11, 3), scale=3**-0.5)
_attention("one_key", _qkv(1, 2, 11, 1, 3), scale=3**-0.5)
_attention("wider_values", _qkv(2, 2, 5, 7, 3, D_out=11), scale=0.5)
_attention("odd_scale", _qkv(1, 2, 5, 7, 4), scale=0.123)
_attention("large_logits", _qkv(1, 2, 31, 37, 8, logits=36.0), scale=8**-0.5)
_attention("causal", _qkv(2, 2, 13, 13, 5), scale=5**-0.5, causal=True)
_attention("causal_fewer_queries", _qkv(1, 2, 5, 13, 4), scale=0.5, causal=True)
_attention("causal_large_logits", _qkv(1, 2, 19, 19, 8, logits=36.0), scale=8**-0.5, causal=True)
_attention("mask_per_key", _qkv(2, 2, 5, 4, 3), scale=0.5, mask=[[[[0.0, -1.5, -math.inf, 0.25]]], [[[0.5, -math.inf, 2.0, 0.0]]]])
_attention("mask_per_query", _qkv(2, 2, 3, 3, 4), scale=0.5, mask=[[0.0, -math.inf, 1.0], [-math.inf, 0.0, -2.0], [0.5, 0.5, -math.inf]])
_attention("mask_and_causal", _qkv(1, 2, 3, 3, 4), scale=0.5, mask=[[0.0, 1.0, 1.0], [-math.inf, 0.0, 1.0], [0.5, -3.0, 0.0]], causal=True)

# activations: x

for op in ("silu", "gelu", "quick_gelu"):
    case(op, "any_shape", lambda d: (d(3, 5, 7, scale=2.0),))
    case(op, "one_number", lambda d: (d(1),))
    case(op, "no_axes", lambda d: (np.asarray(d()),))
    case(op, "positive", lambda d: (np.abs(d(37, scale=3.0)),))
    case(op, "small", lambda d: (d(37, scale=1e-3),))
    case(op, "large", lambda d: (d(37, scale=100.0),))
    case(op, "about_minus_3", lambda d: (d(37, scale=0.5, mean=-3.0),))
for op in ("silu", "quick_gelu"):  # their tails reach far: x e^x, where 1 + tanh has no digits left
    case(op, "about_minus_10", lambda d: (d(37, mean=-10.0),))
    case(op, "about_minus_30", lambda d: (d(37, mean=-30.0),))
case("geglu", "matrix", lambda d: (d(3, 14, scale=2.0),))
case("geglu", "tokens", lambda d: (d(2, 5, 22),))
case("geglu", "one_channel", lambda d: (d(3, 2),))

# feed_forward: x, w_in, b_in, w_out, b_out

case("feed_forward", "tokens", lambda d: (d(2, 5, 6), d(16, 6), d(16), d(6, 8), d(6)))
case("feed_forward", "other_width", lambda d: (d(3, 4), d(6, 4), d(6), d(7, 3), d(7)))

# embedding: ids, table

case("embedding", "tokens", lambda d: (np.array([[0, 5, 5, 2], [6, 1, 0, 3]]), d(7, 3)))
case("embedding", "one_row", lambda d: (np.array([0]), d(1, 1)))
case("embedding", "narrow_ids", lambda d: (np.array([3, 1], dtype="uint8"), d(5, 2)))

# timestep_embedding: t

STEPS = (0.0, 1.0, 17.0, 500.0, 981.0, 999.0)
FRACTIONS = (0.25, 0.5, 71.357, 925.2857, 998.999)  # LMS has such timesteps
for dim, flip, shift in ((320, True, 0.0), (32, False, 1.0), (2, True, 0.0), (13, True, 0.0), (13, False, 1.0), (1, True, 0.0)):
    for name, t in (("whole", STEPS), ("fractional", FRACTIONS)):
        case(
            "timestep_embedding", f"{name}_dim_{dim}_shift_{shift:.0f}{'_flip' if flip else ''}", lambda d, t=t: (np.array(t),),
            dim=dim, flip_sin_to_cos=flip, freq_shift=shift,
        )  # fmt: skip

BY_ID = {c.id: c for c in CASES}
assert len(BY_ID) == len(CASES), "two cases of one name would share a golden result"
