"""Attention by blocks of queries: the same numbers, without the whole score matrix (512 MiB for one 64×64 latent with 8 heads)."""

import math

import numpy as np

from ..dispatch import rung
from ..reference import causal_mask, softmax
from .arena import empty
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

    y = empty((B, S, N, D_out), q.dtype)  # heads inside: merging them afterwards is a free reshape
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
SAFE = 1e20  # row sums outside 1/SAFE … SAFE may have lost digits to overflow or underflow


def fastest_power(features: dict):
    """(f, b) with f(s · log_b e) = eˢ: NumPy has 2ˣ vectorised for AVX-512 alone, at half the price of eˣ; elsewhere 2ˣ costs twice eˣ."""
    wide = features.get("AVX512_SKX") or features.get("X86_V4")  # the name before NumPy 2.4, and since
    return (np.exp2, 2.0) if wide else (np.exp, math.e)


POWER, BASE = fastest_power(np._core._multiarray_umath.__cpu_features__)


@rung("attention", "tiled", owner="numpy", refuses=refuses_half)
def tiled(q, k, v, *, scale, mask, causal):
    """Tiles of 512 × 256 scores, no maximum: exp(s) / Σ exp(s) directly; rows out of range are done again with the maximum.

    softmax needs the maximum only against overflow: exp(s) / Σ exp(s) = exp(s − m) / Σ exp(s − m) for every m. Without it a tile is
    finished when it is left, whatever comes after it (no rescaling as in Flash attention), and two passes over the scores are saved.
    exp(s) is taken to the base that NumPy is fastest at, with the change of base multiplied into Q. Where a head has fewer scores
    than a tile, as with 77 tokens of text, a tile is of several heads.
    """
    B, N, S, D = q.shape
    T, D_out = v.shape[2:]
    mask = whole_mask(mask, causal, (B, N, S, T), q.dtype)
    y = empty((B, S, N, D_out), q.dtype)  # heads inside: merging them afterwards is a free reshape
    ones = np.ones(min(T, KEYS), dtype=q.dtype)
    turn = math.log(math.e, BASE)

    def one_block(task):
        b, heads, rows = task
        size = (heads.stop - heads.start, rows.stop - rows.start)
        queries = np.multiply(q[b, heads, rows], scale * turn, out=scratch("queries", (*size, D), q.dtype))
        values, part = scratch("values", (2, *size, D_out), q.dtype)
        total = np.zeros(size, dtype=q.dtype)
        for keys in blocks(T, KEYS):
            count = keys.stop - keys.start
            scores = np.matmul(queries, k[b, heads, keys].swapaxes(1, 2), out=scratch("scores", (*size, count), q.dtype))
            if mask is not None:
                scores += mask[b, heads, rows, keys] * turn
            POWER(scores, out=scores)
            total += scores @ ones[:count]
            np.matmul(scores, v[b, heads, keys], out=part if keys.start else values)
            if keys.start:
                values += part
        np.divide(values, total[..., None], out=y[b, rows, heads].swapaxes(0, 1))
        lost = ~((total > 1.0 / SAFE) & (total < SAFE) & np.isfinite(values).all(axis=-1))  # NaN is lost, too
        for n in np.flatnonzero(lost.any(axis=1)):
            again, head = lost[n], heads.start + n
            scores = (q[b, head, rows][again] * scale) @ k[b, head].T
            y[b, rows, head][again] = softmax(scores if mask is None else scores + mask[b, head, rows][again]) @ v[b, head]

    def quietly(task):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # rows that overflow are seen and done again
            one_block(task)

    together = max(1, QUERIES * KEYS // (min(S, QUERIES) * min(T, KEYS)))  # heads in one tile
    tasks = [(b, heads, rows) for b in range(B) for heads in blocks(N, together) for rows in blocks(S, QUERIES)]
    parallel_for(tasks, quietly)
    return y.transpose(0, 2, 1, 3)
