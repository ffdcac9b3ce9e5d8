"""Launchers of the kernels for compute capability 9.0 (H100, H200): operands brought by TMA, multiplied by wgmma.

The kernels are the last files of `kernels/gemm`, `kernels/conv2d` and `kernels/attention`; docs/kernels/hopper.md is how they work.
"""

import math
from itertools import product

from ..dispatch import rung
from .attention import refuses_mask, tokens
from .conv2d import prepared
from .device import device
from .kernel import Kernel
from .linear import refuses_all_but_half, refuses_no_mma, total
from .tensor_map import TensorMap

CAPABILITY = 90
BM, BK, STAGES = 128, 64, {128: 3, 160: 4}  # as in wgmma_tile.cuh; STAGES by BN
BLOCKS = {128: 2, 160: 1}  # that fit on a multiprocessor
CLUSTERS = (1, 2)  # blocks that share each box of weights
WIDTHS = tuple((BN, cluster) for BN in BLOCKS for cluster in CLUSTERS)
GEMM = Kernel("gemm/6_wgmma.cu", "gemm_wgmma", WIDTHS)
CONV = Kernel("conv2d/6_wgmma.cu", "conv2d_wgmma", WIDTHS)
HEADS = (40, 64, 80, 160)
ATTENTION = Kernel("attention/7_wgmma.cu", "attention_wgmma", tuple((D,) for D in HEADS))
THREADS = 288  # two warpgroups that multiply, one warp that loads


def refuses_other_gpus() -> str | None:
    return None if device().capability == CAPABILITY else "is made of instructions that only compute capability 9.0 has (H100, H200)"


def width_for(N: int) -> int:
    """BN: 160 where it divides N (all widths of the UNet), else 128."""
    return 160 if N % 160 == 0 else 128


def cluster_for(tiles: int) -> int:
    """Blocks of a cluster for so many tiles that need the same weights: two, unless one of two would have nothing to do."""
    return 2 if tiles % 2 == 0 or tiles > 8 else 1


def tile_bytes(BN: int) -> int:
    """Shared memory of a WgmmaTile: the ring, two barriers a stage, and room to begin at a multiple of 1024."""
    return STAGES[BN] * (2 * BK * (BM + BN) + 16) + 1024


# ----- linear --------------------------------------------------------------------------------------------------------------------


def refuses_odd_widths(x, w, b, *, skip=None):
    return refuses_no_mma(x, w, b) or ("stores two numbers at a time: needs an even width" if w.shape[0] % 2 else None) or refuses_other_gpus()


def product_wgmma(x, w, b=None, skip=None):
    """y = x Wᵀ + b + skip, added in float32 and rounded once.        x [..., K], w [N, K], b [N], skip [..., N], all float16 -> [..., N]"""
    dev = device()
    x, w, b, skip = (None if a is None else dev.contiguous(a) for a in (x, w, b, skip))
    N, K = w.shape
    M = x.size // K
    y = dev.empty((*x.shape[:-1], N), x.dtype)
    if y.size:
        BN = width_for(N)
        cluster = cluster_for(math.ceil(M / BM))
        maps = TensorMap(x.reshape(M, K), (BM, BK), 128), TensorMap(w, (BN // cluster, BK), 128)
        clusters = min(math.ceil(N / BN) * math.ceil(M / (BM * cluster)), BLOCKS[BN] * dev.multiprocessors // cluster)
        dev.launch(GEMM(BN, cluster), clusters * cluster, THREADS, *maps, b, skip, y, M, N, K, shared=tile_bytes(BN))
    return y


@rung("linear", "wgmma", owner="cupy", refuses=refuses_odd_widths, lesson=True)
def linear_wgmma(x, w, b, *, skip=None):
    """CUDA: Hopper's copy engine fills a ring of slices, two warpgroups multiply them where they lie."""
    return product_wgmma(x, w, b, skip)


# ----- conv2d --------------------------------------------------------------------------------------------------------------------


def refuses_other_channels(x, w):
    if w.shape[1] % 8 or w.shape[0] % 32:
        return "needs a multiple of 8 channels in, and of 32 out"
    return refuses_all_but_half(x) or refuses_other_gpus()


def refuses_other_convolutions(x, w, b, *, stride, padding, embedding=None, skip=None):
    if w.shape[2:] != (3, 3) or stride != 1 or padding != ((1, 1), (1, 1)):
        return "is made for 3×3 kernels, stride 1, padding 1"
    return refuses_other_channels(x, w)


def refuses_cut_rows(x, w, b, *, size):
    whole = tuple(size) == (2 * x.shape[1], 2 * x.shape[2])
    return refuses_other_channels(x, w) if whole else "doubles whole images: the size cuts a row or a column"


def pixel_box(B: int, H: int, W: int) -> tuple[int, int, int]:
    """Images, rows and columns of a tile's 128 pixels: powers of two of which the fewest cover [B, H, W], the widest of these."""
    sizes = [2**i for i in range(8)]
    boxes = [(BM // (rows * columns), rows, columns) for rows, columns in product(sizes, sizes) if rows * columns <= BM]
    return min(boxes, key=lambda box: (boxes_for(box, (B, H, W)), -box[2], -box[1]))


def boxes_for(box, shape) -> int:
    return math.prod(math.ceil(n / size) for n, size in zip(shape, box))


def parts_for(tiles: int, slices: int) -> int:
    """How many blocks share a tile: as many as give every multiprocessor one, if each has four slices or more, and at most 16."""
    return max(1, min(device().multiprocessors // tiles, slices // 4, 16))


def conv2d_wgmma(x, w, b=None, embedding=None, skip=None, *, scale=1, parts=None):
    """y = W ∗ x + b + embedding[:, None, None] + skip for a 3×3 kernel, stride 1, padding 1; added in float32 and rounded once.

    scale 2: of x with every pixel doubled in both directions. parts: how many blocks share the sum over K.
    x [B, H, W, C], w [C′, C, 3, 3], b [C′], embedding [B, C′], skip [B, H′, W′, C′], all float16 -> [B, H′, W′, C′]
    """
    dev = device()
    x, w, b, embedding, skip = prepared(x, w, b, embedding, skip)
    (B, H, W, C), O = x.shape, w.shape[3]
    y = dev.empty((B, scale * H, scale * W, O), x.dtype)
    if not y.size:
        return y
    BN, box = width_for(O), pixel_box(B, H, W)
    weights = w.reshape(9, C, O // 32, 32).transpose(0, 2, 1, 3)  # blocks of 32 columns
    boxes = scale * scale * boxes_for(box, (B, H, W))
    cluster = cluster_for(boxes)
    maps = TensorMap(x, (*box, BK), 128), TensorMap(weights, (1, BN // 32, BK // cluster, 32), 64)
    grid = (math.ceil(boxes / cluster) * cluster, math.ceil(O / BN))
    parts = parts or parts_for(math.prod(grid), 9 * math.ceil(C / BK))
    partial = dev.empty((parts, *y.shape), "float32") if parts > 1 else None
    numbers = (B, H, W, C, O, *box[1:], scale)
    dev.launch(CONV(BN, cluster), (*grid, parts), THREADS, *maps, b, embedding, skip, y, partial, *numbers, shared=tile_bytes(BN))
    if parts > 1:
        total(partial, b, embedding, skip, y, images=B)
    return y


@rung("conv2d", "wgmma", owner="cupy", refuses=refuses_other_convolutions)
def conv2d_on_hopper(x, w, b, *, stride, padding, embedding=None, skip=None):
    """CUDA: Hopper's copy engine gathers boxes of pixels, zeros outside of the image, and warpgroups multiply them where they lie."""
    return conv2d_wgmma(x, w, b, embedding, skip)


@rung("upsample_conv2d", "wgmma", owner="cupy", refuses=refuses_cut_rows)
def upsample_conv2d_on_hopper(x, w, b, *, size):
    """CUDA: the same for a doubled image, which is never made: four images of its even and odd rows and columns, each from boxes of x."""
    return conv2d_wgmma(x, w, b, scale=2)


# ----- attention -----------------------------------------------------------------------------------------------------------------

QUERIES = 128  # of a block
ATTENTION_THREADS = 384  # two warpgroups that multiply; of the third, which gives them its registers, one thread loads


def keys_of_a_tile(D: int) -> int:
    return 64 if D > 96 else 128


def attention_bytes(D: int) -> int:
    """Shared memory of the attention kernel: Q, two tiles of keys and of values, nine barriers, and room to begin at a multiple of 1024."""
    across = 64 * math.ceil(D / 64)
    return 2 * (QUERIES * across + 2 * keys_of_a_tile(D) * (across + 32 * math.ceil(D / 32))) + 9 * 8 + 1024


def refuses_other_attention(q, k, v, *, scale, **kwargs):
    reason = refuses_mask(q, k, v, scale=scale, **kwargs) or refuses_all_but_half(q)
    if reason or q.shape[3] not in HEADS:
        return reason or f"is made for heads of {', '.join(map(str, HEADS))}"
    if scale <= 0:
        return "looks for the largest score before it is scaled: takes a scale above 0"
    if k.shape[2] <= keys_of_a_tile(q.shape[3]):
        return "has nothing to overlap: the keys are a single tile"
    return refuses_other_gpus()


@rung("attention", "wgmma", owner="cupy", numerics="fast", refuses=refuses_other_attention)
def attention_wgmma(q, k, v, *, scale, mask, causal):
    """CUDA: Flash attention on Hopper; weights of one tile are made while the tensor cores multiply those of the tile before.

    Numerics: fast. Probabilities are rounded to float16 before they meet the values: relative L2 error against float64 at most 1e-3.
    """
    dev = device()
    q, k, v = tokens(q, k, v)  # [B, S, N, D]
    B, S, N, D = q.shape
    y = dev.empty(q.shape, q.dtype)
    if y.size:
        keys = keys_of_a_tile(D)
        maps = TensorMap(q, (1, QUERIES, 1, 64), 128), TensorMap(k, (1, keys, 1, 64), 128), TensorMap(v, (1, keys, 1, 32), 64)
        numbers = (N, S, k.shape[1], scale * math.log2(math.e), int(causal))
        dev.launch(ATTENTION(D), (math.ceil(S / QUERIES), N, B), ATTENTION_THREADS, *maps, y, *numbers, shared=attention_bytes(D))
    return y.transpose(0, 2, 1, 3)
