"""The feed-forward half of a transformer block by rows: the wide middle [S, 8C] is never in memory as a whole."""

import numpy as np

from ..dispatch import rung
from .activation import geglu_rows, refuses_all_but_float32
from .arena import empty
from .linear import DEPTH, ROWS, product
from .parallel import blocks, parallel_for, scratch


def by_rows(x, w_in, b_in, w_out, b_out, skip, depth):
    rows = x.reshape(-1, x.shape[-1])
    skip = None if skip is None else skip.reshape(-1, len(w_out))
    y = empty((len(rows), len(w_out)), x.dtype)

    def block(part):
        count = part.stop - part.start
        middle = product(rows[part], w_in.T, b_in, out=scratch("middle", (count, len(w_in)), x.dtype), depth=depth)
        gated = geglu_rows(middle, scratch("gated", (count, w_out.shape[1]), x.dtype))
        product(gated, w_out.T, b_out, out=y[part], depth=depth, skip=None if skip is None else skip[part])

    parallel_for(blocks(len(rows), ROWS), block)
    return y.reshape(*x.shape[:-1], len(w_out))


@rung("feed_forward", "short_sums", owner="numpy", refuses=refuses_all_but_float32)
def short_sums(x, w_in, b_in, w_out, b_out, *, skip=None):
    """As row_blocks, with the products of the linear layers summed 160 at a time."""
    return by_rows(x, w_in, b_in, w_out, b_out, skip, DEPTH)


@rung("feed_forward", "row_blocks", owner="numpy", numerics="fast", refuses=refuses_all_but_float32)
def feed_forward(x, w_in, b_in, w_out, b_out, *, skip=None):
    """Both linear layers and the GEGLU between them for 512 tokens at a time: the middle stays in the cache.

    At 64×64 with C = 320 it would be 84 MB for two pictures, written and read twice; 512 rows of it are 5 MB.
    Numerics: fast. Relative L2 error against float64 at most 1e-6 on random tokens and weights.
    """
    return by_rows(x, w_in, b_in, w_out, b_out, skip, None)
