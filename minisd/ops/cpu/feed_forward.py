"""The feed-forward half of a transformer block by rows: the wide middle [S, 8C] is never in memory as a whole."""

import numpy as np

from ..dispatch import rung
from .activation import geglu_rows, refuses_all_but_float32
from .arena import empty
from .linear import ROWS, product
from .parallel import blocks, parallel_for, scratch


@rung("feed_forward", "row_blocks", owner="numpy", refuses=refuses_all_but_float32)
def feed_forward(x, w_in, b_in, w_out, b_out):
    """Both linear layers and the GEGLU between them for 512 tokens at a time: the middle stays in the cache.

    At 64×64 with C = 320 it would be 84 MB for two pictures, written and read twice; 512 rows of it are 5 MB.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = empty((len(rows), len(w_out)), x.dtype)

    def block(part):
        count = part.stop - part.start
        middle = product(rows[part], w_in.T, b_in, out=scratch("middle", (count, len(w_in)), x.dtype))
        gated = geglu_rows(middle, scratch("gated", (count, w_out.shape[1]), x.dtype))
        product(gated, w_out.T, b_out, out=y[part])

    parallel_for(blocks(len(rows), ROWS), block)
    return y.reshape(*x.shape[:-1], len(w_out))
