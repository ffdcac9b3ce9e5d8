"""Linear layers: one large matrix product, cut into pieces for the workers."""

import numpy as np

from ..dispatch import rung
from .arena import empty
from .parallel import blocks, parallel_for, scratch

ROWS = 512  # of x in one piece: enough that repacking w is cheap beside the product
COLUMNS = 4  # pieces where the rows are few: each of them packs x again, and all workers should have one
DEPTH = 160  # products in one sum of the exact rung; one sum of 320 rounds √2 times as much
SMALL = 1 << 22  # multiplications not worth a second thread


def refuses_half(x, *args, **kwargs):
    """float16 has no BLAS on the CPU; the reference computes it in float32."""
    return "needs float32 or float64" if x.dtype == np.float16 else None


def product(x, w, b=None, out=None, depth=None, skip=None):
    """x [S, C] @ w [C, C′] + b + skip [S, C′], by blocks of rows, or of columns where the rows are few.

    depth: at most so many products, and at most half of all, are summed at a time, and the sums added up. BLAS sums up to 384 of them
    one after the other, and the rounding error of such a sum grows with its length.
    """
    S, C = x.shape
    C_out = w.shape[1]
    y = empty((S, C_out), x.dtype) if out is None else out
    if S * C * C_out < SMALL:
        pieces = [(slice(None), slice(None))]
    elif S >= 2 * ROWS:
        pieces = [(rows, slice(None)) for rows in blocks(S, ROWS)]
    else:
        pieces = [(slice(None), columns) for columns in blocks(C_out, max(64, -(-C_out // COLUMNS)))]
    first, *others = blocks(C, max(1, min(depth, (C + 1) // 2) if depth else C)) or [slice(None)]

    def piece(at):
        rows, columns = at
        sums = np.matmul(x[rows, first], w[first, columns], out=y[at])
        for terms in others:
            sums += np.matmul(x[rows, terms], w[terms, columns], out=scratch("sums", sums.shape, x.dtype))
        if b is not None:
            sums += b[columns]
        if skip is not None:
            sums += skip[at]

    parallel_for(pieces, piece)
    return y


def fold(x, w, b, skip, depth=None):
    """y = x Wᵀ + b + skip with all leading axes folded into the rows of one product."""
    skip = None if skip is None else skip.reshape(-1, len(w))
    return product(x.reshape(-1, x.shape[-1]), w.T, b, depth=depth, skip=skip).reshape(*x.shape[:-1], len(w))


@rung("linear", "short_sums", owner="numpy", refuses=refuses_half)
def short_sums(x, w, b, *, skip=None):
    """y = x Wᵀ + b + skip as a sum of products of at most 160 columns of x: nearer to the truth than torch, and a tenth slower than one product."""
    return fold(x, w, b, skip, DEPTH)


@rung("linear", "gemm", owner="numpy", numerics="fast", refuses=refuses_half)
def linear(x, w, b, *, skip=None):
    """y = x Wᵀ + b + skip with all leading axes folded into the rows of one GEMM, bias and skip added while the piece is in the cache.

    Numerics: fast. BLAS sums in longer runs than torch does: relative L2 error against float64 at most 5e-7 for any C; torch's is 3e-7.
    """
    return fold(x, w, b, skip)
