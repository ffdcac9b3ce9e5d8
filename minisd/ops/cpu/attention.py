"""Attention by blocks of queries: the same numbers, without the whole score matrix (512 MiB for one 64×64 latent with 8 heads)."""

import math

import numpy as np

from ..dispatch import rung
from ..reference import causal_mask, softmax
from .linear import refuses_half
from .parallel import blocks, parallel_for, scratch

SCORE_BYTES = 8 << 20  # scores of one block of queries of one head


def whole_mask(mask, causal, shape, dtype):
    """The mask, with the causal one added, as a view of the scores' shape [B, N, S, T]; None where every key is seen."""
    if causal:
        above = causal_mask(shape[2:], dtype, np)
        mask = above if mask is None else mask + above
    return None if mask is None else np.broadcast_to(mask, shape)


@rung("attention", "chunked", owner="numpy", refuses=refuses_half)
def chunked(q, k, v, *, scale, mask, causal):
    """softmax(scale · Q Kᵀ + mask) V for one head and one block of queries at a time; scores live in one buffer of 8 MB."""
    B, N, S, D = q.shape
    T, D_out = v.shape[2:]
    mask = whole_mask(mask, causal, (B, N, S, T), q.dtype)

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


QUERIES, KEYS = 512, 256  # one tile of scores: half a megabyte of float32, which stays in the cache of a core
LOG2_E = math.log2(math.e)
SAFE = 1e20  # row sums outside 1/SAFE … SAFE may have lost digits to overflow or underflow


@rung("attention", "tiled", owner="numpy", refuses=refuses_half)
def tiled(q, k, v, *, scale, mask, causal):
    """Tiles of 512 × 256 scores, no maximum: exp(s) / Σ exp(s) directly; rows out of range are done again with the maximum.

    softmax needs the maximum only against overflow: exp(s) / Σ exp(s) = exp(s − m) / Σ exp(s − m) for every m. Without it a tile is
    finished when it is left, whatever comes after it (no rescaling as in Flash attention), and two passes over the scores are saved.
    exp(s) is taken as 2^(s log₂ e), which NumPy computes in half the time, with log₂ e and the scale multiplied into Q.
    """
    B, N, S, D = q.shape
    T, D_out = v.shape[2:]
    mask = whole_mask(mask, causal, (B, N, S, T), q.dtype)
    y = np.empty((B, S, N, D_out), dtype=q.dtype)  # heads inside: merging them afterwards is a free reshape
    ones = np.ones(min(T, KEYS), dtype=q.dtype)

    def one_block(task):
        b, n, rows = task
        count = rows.stop - rows.start
        queries = np.multiply(q[b, n, rows], scale * LOG2_E, out=scratch("queries", (count, D), q.dtype))
        values, part = scratch("values", (2, count, D_out), q.dtype)
        total = np.zeros(count, dtype=q.dtype)
        for keys in blocks(T, KEYS):
            size = keys.stop - keys.start
            scores = np.matmul(queries, k[b, n, keys].T, out=scratch("scores", (count, size), q.dtype))
            if mask is not None:
                scores += mask[b, n, rows, keys] * LOG2_E
            np.exp2(scores, out=scores)
            total += scores @ ones[:size]
            np.matmul(scores, v[b, n, keys], out=part if keys.start else values)
            if keys.start:
                values += part
        np.divide(values, total[:, None], out=y[b, rows, n])
        lost = ~((total > 1.0 / SAFE) & (total < SAFE) & np.isfinite(values).all(axis=1))  # NaN is lost, too
        if lost.any():
            scores = (q[b, n, rows][lost] * scale) @ k[b, n].T
            y[b, rows, n][lost] = softmax(scores if mask is None else scores + mask[b, n, rows][lost]) @ v[b, n]

    def quietly(task):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # rows that overflow are seen and done again
            one_block(task)

    parallel_for([(b, n, rows) for b in range(B) for n in range(N) for rows in blocks(S, QUERIES)], quietly)
    return y.transpose(0, 2, 1, 3)
