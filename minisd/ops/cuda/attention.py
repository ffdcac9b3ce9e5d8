"""Launchers of attention, from a block a query to Flash attention on tensor cores.

The kernels are in `kernels/attention`, each with a header that says what it does and what it costs. In memory heads lie inside tokens,
[B, S, N, D], as a linear layer leaves them: `q.transpose(0, 2, 1, 3)` of the façade's [B, N, S, D] is then no copy.
"""

import math

from ..dispatch import rung
from .device import device
from .kernel import OF_DTYPE, TYPES, Kernel
from .norm import HALF_OR_FLOAT, refuses_wide

COLUMNS = (2, 5, 8)  # of 32 elements of a head: widths up to 64, 160, 256
TYPES_AND_COLUMNS = tuple((T, columns) for (T,) in HALF_OR_FLOAT for columns in COLUMNS)
NAIVE = Kernel("attention/1_naive.cu", "attention_naive", HALF_OR_FLOAT)
ONLINE = Kernel("attention/2_online.cu", "attention_online", TYPES_AND_COLUMNS)
TILES = Kernel("attention/3_tiles.cu", "attention_tiles", TYPES_AND_COLUMNS)
FLASH_WIDTHS = (40, 64, 80, 160)
FLASH = Kernel("attention/4_flash.cu", "attention_flash", tuple((D,) for D in FLASH_WIDTHS))

# Head width: (warps, 16-query tiles a warp, keys a tile, stages of the ring, blocks a multiprocessor that the registers must suffice for), from the
# most queries a block to the fewest. The launcher takes the first that gives enough blocks; the others are prepared to be measured by `tuned_by`.
TUNED_VARIANTS = {
    40: ((4, 2, 64, 2, 3), (4, 2, 32, 2, 4), (8, 1, 64, 2, 2), (4, 1, 64, 3, 4)),
    64: ((4, 2, 64, 2, 2), (4, 2, 32, 3, 2), (4, 1, 64, 2, 3)),
    80: ((4, 2, 64, 2, 2), (8, 1, 64, 2, 1), (4, 1, 64, 2, 3)),
    160: ((4, 1, 32, 2, 2), (2, 1, 32, 2, 4), (2, 1, 64, 2, 2)),
}
TUNED = Kernel("attention/5_tuned.cu", "attention_tuned", tuple((D, *v) for D, variants in TUNED_VARIANTS.items() for v in variants))
SCORES = Kernel("softmax/4_scores.cu", "softmax_scores", HALF_OR_FLOAT)
FEW_KEYS = Kernel("attention/6_few_keys.cu", "attention_few_keys", tuple((D,) for D in FLASH_WIDTHS))

MOST_KEYS = 24000  # scores of one query in the shared memory of the naive rung
FEW = 80  # keys that the rung for prompts keeps: 77, in fragments of 16
SCRATCH = 32 << 20  # bytes of scores at once: they stay in the L2 cache between the products (40 MB in an A100, 50 in an H100)
WANTED_BLOCKS = 1.5  # of the tuned rung, for each multiprocessor


def refuses_mask(q, k, v, *, scale, mask, causal):
    if mask is not None:
        return "takes no mask, only causal"
    return refuses_wide(q) or (None if v.shape[3] == q.shape[3] else "needs values as wide as keys")


def refuses_many_keys(q, k, v, **kwargs):
    return refuses_mask(q, k, v, **kwargs) or (f"keeps the scores of at most {MOST_KEYS} keys" if k.shape[2] > MOST_KEYS else None)


def refuses_wide_heads(q, k, v, **kwargs):
    return refuses_mask(q, k, v, **kwargs) or ("takes heads of at most 256" if q.shape[3] > 256 else None)


def refuses_other_widths(q, k, v, **kwargs):
    reason = refuses_mask(q, k, v, **kwargs)
    if reason or OF_DTYPE[q.dtype] != "half":
        return reason or "takes float16: that is what the tensor cores multiply"
    return None if q.shape[3] in FLASH_WIDTHS else f"is made for heads of {', '.join(map(str, FLASH_WIDTHS))}"


def tokens(q, k, v):
    """[B, N, S, D] as it is in memory, [B, S, N, D]; copied only where it is not in this order."""
    return (device().contiguous(x.transpose(0, 2, 1, 3)) for x in (q, k, v))


def columns_for(D: int) -> int:
    return next(c for c in COLUMNS if D <= 32 * c)


def _launch(instance, q, k, v, *, blocks, widths, scale, causal, threads=128, shared=0):
    """`blocks` thread blocks for each head. widths: the head width, where the kernel is told it."""
    dev = device()
    q, k, v = tokens(q, k, v)
    B, S, N, _ = q.shape
    y = dev.empty(q.shape, q.dtype)
    dev.launch(instance, (blocks, N, B), threads, q, k, v, y, N, S, k.shape[1], *widths, scale, int(causal), shared=shared)
    return y.transpose(0, 2, 1, 3)


@rung("attention", "naive", owner="cupy", refuses=refuses_many_keys, lesson=True)
def naive(q, k, v, *, scale, mask, causal):
    """CUDA: one block for one query, its scores in shared memory."""
    shared = 4 * (128 + k.shape[2])
    return _launch(NAIVE(OF_DTYPE[q.dtype]), q, k, v, blocks=q.shape[2], widths=q.shape[3:], scale=scale, causal=causal, shared=shared)


@rung("attention", "online", owner="cupy", refuses=refuses_wide_heads, lesson=True)
def online(q, k, v, *, scale, mask, causal):
    """CUDA: one warp for one query, softmax with a running maximum: no memory for scores."""
    instance = ONLINE(OF_DTYPE[q.dtype], columns_for(q.shape[3]))
    return _launch(instance, q, k, v, blocks=math.ceil(q.shape[2] / 4), widths=q.shape[3:], scale=scale, causal=causal)


@rung("attention", "tiles", owner="cupy", refuses=refuses_wide_heads, lesson=True)
def tiles(q, k, v, *, scale, mask, causal):
    """CUDA: 16 queries share tiles of 32 keys in shared memory, running maximum by tiles."""
    D = q.shape[3]
    instance, shared = TILES(OF_DTYPE[q.dtype], columns_for(D)), 4 * (16 * D + 32 * (D + 1) + 32 * D)
    return _launch(instance, q, k, v, blocks=math.ceil(q.shape[2] / 16), widths=(D,), scale=scale, causal=causal, shared=shared)


def _by_rows(q, k, v, T, *, scale, mask, causal):
    """softmax(scale Q Kᵀ + mask) V with operands and weights of type T, for as many queries at once as SCRATCH has room for their scores."""
    dev, dtype = device(), TYPES[T]
    B, N, S, _ = q.shape
    heads, keys = B * N, k.shape[2]
    y = dev.empty((B, S, N, v.shape[3]), q.dtype)
    q, k, v = (dev.contiguous(x.astype(dtype, copy=False)).reshape(heads, *x.shape[2:]) for x in (q, k, v))
    steps = (0, 0, 0, 0)
    if mask is not None:
        mask = dev.contiguous(mask.astype(dtype, copy=False))
        sizes = (1,) * (4 - mask.ndim) + mask.shape
        steps = tuple(0 if n == 1 else math.prod(sizes[i + 1 :]) for i, n in enumerate(sizes))  # an axis of one is the same for all
    ahead = keys - S + 1 if causal else keys
    rows = max(1, SCRATCH // (4 * max(1, heads) * keys))
    for first in range(0, S, rows):
        some = q[:, first : first + rows]
        scores = dev.product(some, k, "float32", transposed=True)
        p = dev.empty(scores.shape, dtype)
        queries = some.shape[1]
        dev.launch(SCORES(T), math.ceil(heads * queries / 4), 128, scores, mask, p, heads, queries, keys, N, first, ahead, scale, *steps)
        y[:, first : first + rows] = dev.product(p, v, q.dtype).reshape(B, N, queries, -1).transpose(0, 2, 1, 3)
    return y.transpose(0, 2, 1, 3)


@rung("attention", "rows", owner="cupy", refuses=refuses_wide)
def rows(q, k, v, *, scale, mask, causal):
    """cuBLAS twice in float32, our softmax between them, for so many queries at once that their scores are 32 MiB: any width, any mask."""
    return _by_rows(q, k, v, "float", scale=scale, mask=mask, causal=causal)


def refuses_all_but_half(q, *args, **kwargs):
    return None if OF_DTYPE.get(q.dtype) == "half" else "takes float16: in float32 it is the rung `rows`"


@rung("attention", "half_rows", owner="cupy", numerics="fast", refuses=refuses_all_but_half)
def half_rows(q, k, v, *, scale, mask, causal):
    """The same with float16 operands on tensor cores; scores are float32: the one wide head of the VAE, and masks.

    Numerics: fast. Probabilities are rounded to float16 before they meet the values: relative L2 error against float64 at most 1e-3.
    """
    return _by_rows(q, k, v, "half", scale=scale, mask=mask, causal=causal)


def flash_bytes(D: int) -> int:
    """Shared memory of the Flash kernel: a tile of queries, and one or two of keys and values."""
    return 2 * 64 * (math.ceil(D / 16) * 16 + 8) * (3 if D > 96 else 5)


@rung("attention", "flash", owner="cupy", numerics="fast", refuses=refuses_other_widths)
def flash(q, k, v, *, scale, mask, causal):
    """CUDA: Flash attention on tensor cores; scores stay in registers, keys and values arrive while others are multiplied.

    Numerics: fast. Probabilities are rounded to float16 before they meet the values: relative L2 error against float64 at most 1e-3.
    """
    D = q.shape[3]
    return _launch(FLASH(D), q, k, v, blocks=math.ceil(q.shape[2] / 64), widths=(), scale=scale * math.log2(math.e), causal=causal,
                   shared=flash_bytes(D))  # fmt: skip


def refuses_negative_scale(q, k, v, *, scale, **kwargs):
    reason = refuses_other_widths(q, k, v, scale=scale, **kwargs)
    return reason or (None if scale > 0 else "takes the maximum before it scales: the scale must be positive")


def tuned_variant(D: int, heads: int, queries: int, multiprocessors: int) -> tuple[int, ...]:
    """The variant with the most queries a block that still gives every multiprocessor work; else the one with the fewest."""
    variants, rows = TUNED_VARIANTS[D], lambda v: 16 * v[0] * v[1]
    return next((v for v in variants if heads * math.ceil(queries / rows(v)) >= WANTED_BLOCKS * multiprocessors), min(variants, key=rows))


def tuned_bytes(D: int, variant) -> int:
    """Shared memory of a variant: its stages of keys and values."""
    _, _, keys, stages, _ = variant
    return 4 * stages * keys * D


def tuned_by(variant, q, k, v, *, scale, causal):
    """Attention by one of TUNED_VARIANTS[D]."""
    warps, tiles_of_queries, *_ = variant
    D, blocks = q.shape[3], math.ceil(q.shape[2] / (16 * warps * tiles_of_queries))
    return _launch(TUNED(D, *variant), q, k, v, blocks=blocks, widths=(), scale=scale * math.log2(math.e), causal=causal,
                   threads=32 * warps, shared=tuned_bytes(D, variant))  # fmt: skip


@rung("attention", "tuned", owner="cupy", numerics="fast", refuses=refuses_negative_scale)
def tuned(q, k, v, *, scale, mask, causal):
    """CUDA: Flash attention with up to 32 queries a warp, keys and values in a swizzled ring, each awaited when it is needed.

    Numerics: fast. Probabilities are rounded to float16 before they meet the values: relative L2 error against float64 at most 1e-3.
    """
    B, N, S, D = q.shape
    return tuned_by(tuned_variant(D, B * N, S, device().multiprocessors), q, k, v, scale=scale, causal=causal)


def refuses_more_keys(q, k, v, **kwargs):
    return refuses_negative_scale(q, k, v, **kwargs) or (f"keeps at most {FEW} keys" if k.shape[2] > FEW else None)


def few_keys_blocks(heads: int, queries: int, multiprocessors: int) -> int:
    """Blocks of a head: about four for each multiprocessor in all, and as many tiles of 64 queries for each."""
    tiles_of_queries, wanted = math.ceil(queries / 64), max(1, 4 * multiprocessors // max(1, heads))
    return math.ceil(tiles_of_queries / max(1, math.ceil(tiles_of_queries / wanted)))


@rung("attention", "few_keys", owner="cupy", numerics="fast", refuses=refuses_more_keys)
def few_keys(q, k, v, *, scale, mask, causal):
    """CUDA: the 77 keys and values of a prompt stay in shared memory while the queries pass; one softmax, nothing to rescale.

    Numerics: fast. Probabilities are rounded to float16 before they meet the values: relative L2 error against float64 at most 1e-3.
    """
    B, N, S, D = q.shape
    scale *= math.log2(math.e)
    return _launch(FEW_KEYS(D), q, k, v, blocks=few_keys_blocks(B * N, S, device().multiprocessors), widths=(), scale=scale, causal=causal, shared=4 * FEW * D)
