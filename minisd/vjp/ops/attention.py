"""Attention, backwards, by blocks of queries: the score matrix is made again a block at a time, as in Flash attention."""

from ... import ops
from ...backend import array_module
from ...ops.reference import softmax

SCORE_BYTES = 8 << 20  # the scores of one block of queries, for all heads; five such arrays live at once


def attention(q, k, v, *, scale, mask=None, causal=False):
    """Y = P V, P = softmax(S), S = scale · Q Kᵀ + mask    →    for each block of queries, with P made again from q and k:

    dV += Pᵀ dY,   dP = dY Vᵀ,   dS = P ∘ (dP − Σₜ P ∘ dP),   dQ = scale · dS K,   dK += scale · dSᵀ Q

    dy [B, N, S, D′] -> dq [B, N, S, D], dk [B, N, T, D], dv [B, N, T, D′]; the mask gets no gradient.
    Dao et al., arXiv:2205.14135, appendix B.2
    """

    def pullback(dy):
        xp = array_module(q)
        B, N, S, _ = q.shape
        T = k.shape[2]
        dq, dk, dv = xp.empty(q.shape, q.dtype), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
        keys, values = k.swapaxes(-1, -2), v.swapaxes(-1, -2)
        size = max(1, SCORE_BYTES // (B * N * T * q.itemsize))
        for start in range(0, S, size):
            rows = slice(start, min(start + size, S))
            scores = (q[:, :, rows] * scale) @ keys
            if mask is not None:
                scores += xp.broadcast_to(mask, (B, N, S, T))[:, :, rows]
            if causal:  # query s sees the keys up to s + T − S
                scores[..., xp.arange(T)[None] > xp.arange(rows.start, rows.stop)[:, None] + T - S] = -xp.inf
            p = softmax(scores)
            dv += p.swapaxes(-1, -2) @ dy[:, :, rows]
            ds = dy[:, :, rows] @ values
            ds -= (p * ds).sum(axis=-1, keepdims=True)
            ds *= p
            ds *= scale
            dq[:, :, rows] = ds @ k
            dk += ds.swapaxes(-1, -2) @ q[:, :, rows]
        return dq, dk, dv

    return ops.attention(q, k, v, scale=scale, mask=mask, causal=causal), pullback
