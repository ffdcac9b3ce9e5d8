"""Linear layers: one large matrix product instead of a batch of small ones."""

import numpy as np

from ..dispatch import rung


def refuses_half(x, *args, **kwargs):
    """float16 has no BLAS on the CPU; the reference computes it in float32."""
    return "needs float32 or float64" if x.dtype == np.float16 else None


@rung("linear", "gemm", owner="numpy", refuses=refuses_half)
def linear(x, w, b):
    """y = x Wᵀ + b with all leading axes folded into the rows of one GEMM, the bias added in place."""
    y = x.reshape(-1, x.shape[-1]) @ w.T
    if b is not None:
        y += b
    return y.reshape(*x.shape[:-1], w.shape[0])
