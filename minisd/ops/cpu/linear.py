"""Linear layers: one large matrix product, cut into pieces for the workers."""

import numpy as np

from ..dispatch import rung
from .arena import empty
from .parallel import blocks, parallel_for

ROWS = 512  # of x in one piece: enough that repacking w is cheap beside the product
COLUMNS = 4  # pieces where the rows are few: each of them packs x again, and all workers should have one
SMALL = 1 << 22  # multiplications not worth a second thread


def refuses_half(x, *args, **kwargs):
    """float16 has no BLAS on the CPU; the reference computes it in float32."""
    return "needs float32 or float64" if x.dtype == np.float16 else None


def product(x, w, b=None, out=None):
    """x [S, C] @ w [C, C′] + b, by blocks of rows, or of columns where the rows are few."""
    S, C = x.shape
    C_out = w.shape[1]
    y = empty((S, C_out), x.dtype) if out is None else out
    if S * C * C_out < SMALL:
        pieces = [(slice(None), slice(None))]
    elif S >= 2 * ROWS:
        pieces = [(rows, slice(None)) for rows in blocks(S, ROWS)]
    else:
        pieces = [(slice(None), columns) for columns in blocks(C_out, max(64, -(-C_out // COLUMNS)))]

    def piece(at):
        rows, columns = at
        np.matmul(x[rows], w[:, columns], out=y[rows, columns])
        if b is not None:
            y[rows, columns] += b[columns]

    parallel_for(pieces, piece)
    return y


@rung("linear", "gemm", owner="numpy", refuses=refuses_half)
def linear(x, w, b):
    """y = x Wᵀ + b with all leading axes folded into the rows of one GEMM, the bias added while the piece is in the cache."""
    return product(x.reshape(-1, x.shape[-1]), w.T, b).reshape(*x.shape[:-1], w.shape[0])
