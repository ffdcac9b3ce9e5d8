"""Linear layers and embeddings, backwards: each product with a matrix becomes a product with its transpose."""

from ... import ops
from ...backend import array_module


def linear(x, w, b=None, *, again=None):
    """y = x Wᵀ + b    →    dx = dy W,   dW = dyᵀ x,   db = Σ dy, both summed over all rows.

    dy [..., C′] -> dx [..., C]; wrt_params: dx, dw [C′, C], db [C′] (None without b)
    again: a function that makes x anew. x matters for dW only, so with it x is not kept.
    """
    remake = again or (lambda: x)

    def pullback(dy, wrt_params=False):
        dx = ops.linear(dy, w.T)
        if not wrt_params:
            return dx
        rows = dy.reshape(-1, dy.shape[-1])
        return dx, rows.T @ remake().reshape(-1, w.shape[1]), None if b is None else total(rows)

    return ops.linear(x, w, b), pullback


def embedding(ids, table):
    """y[i] = table[ids[i]]    →    dtable[v] = Σ dy[i] over the places i where v stands; the whole ids have no gradient.

    dy [..., C] -> dtable [V, C]
    """

    def pullback(dy):
        xp = array_module(table)
        dtable = xp.zeros(table.shape, dtype=table.dtype)
        xp.add.at(dtable, ids.reshape(-1), dy.reshape(-1, table.shape[1]))
        return dtable

    return ops.embedding(ids, table), pullback


def total(rows):
    """Σ over the first axis, summed in float64.        [S, C] -> [C]"""
    return rows.sum(axis=0, dtype="float64").astype(rows.dtype)
