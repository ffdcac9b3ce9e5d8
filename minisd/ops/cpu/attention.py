"""Attention by blocks of queries: the same numbers, without the whole score matrix (512 MiB for one 64×64 latent with 8 heads)."""

import numpy as np

from ..dispatch import rung
from ..reference import causal_mask
from .linear import refuses_half

SCORE_BYTES = 8 << 20  # scores of one block of queries of one head


@rung("attention", "chunked", owner="numpy", refuses=refuses_half)
def chunked(q, k, v, *, scale, mask, causal):
    """softmax(scale · Q Kᵀ + mask) V for one head and one block of queries at a time; scores live in one buffer of 8 MB."""
    B, N, S, D = q.shape
    T, D_out = v.shape[2:]
    if causal:
        above = causal_mask((S, T), q.dtype, np)
        mask = above if mask is None else mask + above
    mask = None if mask is None else np.broadcast_to(mask, (B, N, S, T))

    y = np.empty((B, S, N, D_out), dtype=q.dtype)  # heads inside: merging them afterwards is a free reshape
    rows = min(S, max(1, SCORE_BYTES // (T * q.itemsize)))
    buffer = np.empty((rows, T), dtype=q.dtype)
    for b in range(B):
        for n in range(N):
            for top in range(0, S, rows):
                block = slice(top, top + rows)
                scores = np.matmul(q[b, n, block] * scale, k[b, n].T, out=buffer[: min(rows, S - top)])
                if mask is not None:
                    scores += mask[b, n, block]
                scores -= scores.max(axis=-1, keepdims=True)
                np.exp(scores, out=scores)
                total = scores.sum(axis=-1, keepdims=True)
                y[b, block, n] = (scores @ v[b, n]) / total  # D′ divisions a row instead of T
    return y.transpose(0, 2, 1, 3)
