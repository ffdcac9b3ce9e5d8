"""Launcher of the feed-forward half of a transformer block: GEGLU on its product's way out, then a linear layer that adds the skip."""

import math

from ..dispatch import dispatch, rung
from .device import device
from .kernel import Kernel
from .linear import refuses_all_but_half
from .tiles import BK, TILES, plan

GEGLU = Kernel("gemm/5_geglu.cu", "gemm_geglu", tuple(tile.sizes for tile in TILES))


def refuses_ragged(x, w_in, b_in, w_out, *args, **kwargs):
    C, D = w_in.shape[1], w_out.shape[1]
    return refuses_all_but_half(x) or (None if C % 8 == D % 8 == 0 else "needs multiples of 8 channels: a load is 16 bytes")


def product_geglu(x, w, b, *, tile=None):
    """y = h · GELU(g) with [h, g] = x Wᵀ + b, in tiles of a given or a fitting size.        x [..., C], w [2D, C], b [2D] -> [..., D]"""
    dev = device()
    x, w, b = (dev.contiguous(a) for a in (x, w, b))
    N, K = w.shape
    M = x.size // K
    tile = tile or plan(M, N, math.ceil(K / BK), dev.multiprocessors, most_parts=1)[0]
    y = dev.empty((*x.shape[:-1], N // 2), x.dtype)
    grid = (math.ceil(N / tile.BN), math.ceil(M / tile.BM))
    dev.launch(GEGLU(*tile.sizes), grid, tile.threads, x, w, b, y, M, N // 2, K, shared=tile.shared_bytes(by_k=False))
    return y


@rung("feed_forward", "geglu_epilogue", owner="cupy", numerics="fast", refuses=refuses_ragged)
def geglu_epilogue(x, w_in, b_in, w_out, b_out, *, skip=None):
    """CUDA: a product on tensor cores that stores h · GELU(g) alone, never the 8 C numbers it is made of; then the best linear layer.

    Numerics: fast. The middle is rounded to float16 once: relative L2 error against float64 at most 1e-3.
    """
    return dispatch("linear", product_geglu(x, w_in, b_in), w_out, b_out, skip=skip)
