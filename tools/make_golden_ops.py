"""Writes tests/golden/ops.npz: for every case of tests/ops/cases.py the float64 truth and torch's own float32 result.

    python tools/make_golden_ops.py        # from the root of the repository, with the `reference` extra

Truth is torch in float64, except where torch itself is not exact there: the variance of group norm is taken in two passes (torch's one
pass loses 6 digits at mean 1000), GELU through erfc (1 + erf cancels for negative x), the timestep embedding through its formula
(diffusers rounds the phases to float32 in every dtype).
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.ops.cases import CASES, Case  # noqa: E402


def nchw(x):
    """[B, ..., C] -> [B, C, ...], contiguous as in diffusers: on strided memory torch takes other paths (its group norm a bad one)."""
    return x.movedim(-1, 1).contiguous()


def nhwc(x):
    return x.movedim(1, -1)


def conv2d(x, w, b, *, stride, padding):
    (top, bottom), (left, right) = padding
    return nhwc(F.conv2d(F.pad(nchw(x), (left, right, top, bottom)), w, b, stride=stride))


def upsample_nearest(x, *, size):
    return nhwc(F.interpolate(nchw(x), size=size, mode="nearest"))


def group_norm(x, w, b, *, groups, eps, act):
    if x.dtype == torch.float64:
        g = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
        g = g - g.mean(dim=(1, 3), keepdim=True)
        y = (g / torch.sqrt((g * g).mean(dim=(1, 3), keepdim=True) + eps)).reshape(x.shape) * w + b
    else:  # not F.group_norm, which refuses groups of one number
        y = nhwc(torch.group_norm(nchw(x), groups, w, b, eps))
    return F.silu(y) if act == "silu" else y


def attention(q, k, v, *, scale, mask, causal):
    S, T = q.shape[2], k.shape[2]
    if causal:  # spelled out, because torch's is_causal counts from the start where S < T
        above = torch.full((S, T), -math.inf, dtype=q.dtype).triu(1 + T - S)
        mask = above if mask is None else mask.to(q.dtype) + above
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype), scale=scale)


def gelu(x):
    if x.dtype == torch.float64:
        return 0.5 * x * torch.special.erfc(-x * math.sqrt(0.5))
    return F.gelu(x)


def geglu(x):
    h, g = x.chunk(2, dim=-1)
    return h * gelu(g)


def feed_forward(x, w_in, b_in, w_out, b_out):
    return F.linear(geglu(F.linear(x, w_in, b_in)), w_out, b_out)


def timestep_embedding(t, *, dim, flip_sin_to_cos, freq_shift):
    if t.dtype == torch.float64:
        omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - freq_shift))
        sin, cos = torch.sin(t[:, None] * omega), torch.cos(t[:, None] * omega)
        return F.pad(torch.cat((cos, sin) if flip_sin_to_cos else (sin, cos), dim=-1), (0, dim % 2))
    from diffusers.models.embeddings import get_timestep_embedding

    return get_timestep_embedding(t, dim, flip_sin_to_cos=flip_sin_to_cos, downscale_freq_shift=freq_shift)


TORCH = {
    "linear": F.linear,
    "conv2d": conv2d,
    "upsample_nearest": upsample_nearest,
    "upsample_conv2d": lambda x, w, b, *, size: conv2d(upsample_nearest(x, size=size), w, b, stride=1, padding=((1, 1), (1, 1))),
    "group_norm": group_norm,
    "layer_norm": lambda x, w, b, *, eps: F.layer_norm(x, w.shape, w, b, eps),
    "softmax": lambda x: F.softmax(x, dim=-1),
    "attention": attention,
    "silu": F.silu,
    "gelu": gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "geglu": geglu,
    "feed_forward": feed_forward,
    "embedding": lambda ids, table: F.embedding(ids.long(), table),
    "timestep_embedding": timestep_embedding,
}


def run(case: Case, dtype: str) -> np.ndarray:
    args = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in case.inputs(dtype)]
    kwargs = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in case.kwargs.items()}
    y = TORCH[case.op](*args, **kwargs)
    return y.contiguous().numpy().astype(dtype)


def main():
    import diffusers

    torch.set_num_threads(1)
    results = {"made_with": np.array(f"torch {torch.__version__}, diffusers {diffusers.__version__}")}
    for case in CASES:
        results[f"{case.id}/truth"] = run(case, "float64")
        results[f"{case.id}/torch"] = run(case, "float32")
    path = ROOT / "tests" / "golden" / "ops.npz"
    np.savez_compressed(path, **results)
    print(f"{path.relative_to(ROOT)}: {len(CASES)} cases, {path.stat().st_size / 1000:.0f} kB, {results['made_with']}")


if __name__ == "__main__":
    main()
