"""The attention kernels at Stable Diffusion's head widths, in the simulator: ragged numbers of queries and keys, causal, extreme logits.

Below them: which rung takes which call of the official models, and what the simulator says when a wait or a barrier is taken out.
"""

import math

import numpy as np
import pytest

from minisd.ops import reference
from minisd.ops.cuda import attention
from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.kernel import Instance, Parameter, source
from minisd.ops.dispatch import RUNGS as LADDERS
from tests.cudasim import simulator
from tests.cudasim.simulator import Simulator, SimulatorError, compile_text, needs_simulator, run_text
from tests.numerics import assert_faithful, relative_l2

in_simulator = lambda test: needs_simulator[0](needs_simulator[1](test))  # noqa: E731  what only counts needs no compiler
RUNGS = {"naive": attention.naive, "online": attention.online, "tiles": attention.tiles, "flash": attention.flash, "tuned": attention.tuned,
         "few_keys": attention.few_keys, "half_rows": attention.half_rows}  # fmt: skip
# B, N, S, T, D, causal, logits multiplied by
SHAPES = {
    "self_40": (1, 2, 65, 65, 40, False, 1), "cross_40": (2, 1, 64, 77, 40, False, 1), "one_query": (1, 1, 1, 130, 40, False, 1),
    "causal_64": (1, 2, 77, 77, 64, True, 1), "causal_fewer_queries": (1, 1, 10, 77, 64, True, 1), "one_key_64": (1, 1, 5, 1, 64, False, 1),
    "cross_80": (1, 1, 3, 77, 80, False, 1), "self_160": (1, 1, 66, 66, 160, False, 1), "causal_160": (1, 1, 70, 70, 160, True, 1),
    "large_logits": (1, 1, 64, 128, 64, False, 36), "equal_scores": (1, 1, 16, 100, 40, False, 0), "63_keys": (1, 1, 20, 63, 40, False, 1),
    "64_keys": (1, 1, 64, 64, 40, True, 1), "65_keys": (1, 1, 33, 65, 80, True, 1), "80_keys": (1, 1, 7, 80, 64, False, 1),
    "81_keys": (1, 1, 7, 81, 64, False, 1),
}  # fmt: skip


def inputs(B, N, S, T, D, causal, logits, dtype="float16"):
    """q, k, v as [B, N, ·, D] views of token-major arrays, and the keywords."""
    random = np.random.RandomState(S + T + D)
    q, k, v = (random.randn(B, n, N, D).astype(dtype).transpose(0, 2, 1, 3) for n in (S, T, T))
    return (q * np.dtype(dtype).type(logits), k, v), dict(scale=D**-0.5, mask=None, causal=causal)


def truth_of(arrays, keywords):
    return reference.attention(*(a.astype("float64") for a in arrays), **keywords)


def refuses(name, arrays, keywords):
    return next(r for r in LADDERS["attention"] if r.name == name).refuses(*arrays, **keywords)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", RUNGS)
@in_simulator
def test_half_is_within_a_thousandth_of_float64(name, shape):
    arrays, keywords = inputs(*SHAPES[shape])
    if name == "few_keys" and arrays[1].shape[2] > attention.FEW:
        assert "at most 80 keys" in refuses(name, arrays, keywords)
        return
    truth = truth_of(arrays, keywords)
    with on_device(Simulator()) as _:
        y = RUNGS[name](*arrays, **keywords)
    assert y.shape == truth.shape and y.dtype == np.float16
    assert relative_l2(y, truth) <= 1e-3


# ----- rung 5 --------------------------------------------------------------------------------------------------------------------

VARIANTS = [(D, v) for D, variants in attention.TUNED_VARIANTS.items() for v in variants]


@pytest.mark.parametrize("S, T, causal", [(65, 130, False), (129, 129, True)])
@pytest.mark.parametrize("D, variant", VARIANTS)
@in_simulator
def test_every_variant_is_within_a_thousandth_of_float64(D, variant, S, T, causal):
    """More queries than a block, more keys than the ring holds, both ragged."""
    arrays, keywords = inputs(1, 1, S, T, D, causal, 1)
    with on_device(Simulator()):
        y = attention.tuned_by(variant, *arrays, scale=keywords["scale"], causal=causal)
    assert relative_l2(y, truth_of(arrays, keywords)) <= 1e-3


@pytest.mark.parametrize("D, variant", VARIANTS)
def test_a_variant_fits_into_every_gpu(D, variant):
    warps, tiles, keys, stages, blocks = variant
    assert attention.tuned_bytes(D, variant) <= 99 << 10 and blocks >= 1
    assert stages >= 2 and keys % 16 == 0 and tiles in (1, 2)


@pytest.mark.parametrize("D", attention.FLASH_WIDTHS)
def test_variants_go_from_many_queries_a_block_to_few(D):
    queries = [16 * warps * tiles for warps, tiles, *_ in attention.TUNED_VARIANTS[D]]
    assert queries == sorted(queries, reverse=True)


# heads (both halves of guidance), width, queries -> variant: the self-attention of SD 1.x and 2.x at 512² and 768²
CHOSEN = {
    (16, 40, 4096): (4, 2, 64, 2, 3), (16, 80, 1024): (4, 1, 64, 2, 3), (16, 160, 256): (2, 1, 32, 2, 4), (16, 160, 64): (2, 1, 32, 2, 4),
    (10, 64, 4096): (4, 2, 64, 2, 2), (20, 64, 1024): (4, 1, 64, 2, 3), (40, 64, 256): (4, 1, 64, 2, 3), (10, 64, 9216): (4, 2, 64, 2, 2),
    (16, 40, 9216): (4, 2, 64, 2, 3), (16, 80, 2304): (4, 2, 64, 2, 2), (16, 160, 576): (2, 1, 32, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("heads, D, S", CHOSEN)
def test_the_variant_of_each_level_of_the_unet(heads, D, S):
    assert attention.tuned_variant(D, heads, S, 132) == CHOSEN[heads, D, S]


def places(D, rows):
    """[rows, D/8]: where chunk_of of attention_tile.cuh puts each chunk, in chunks of 16 bytes."""
    toy = f"__global__ void toy(int* y) {{ y[threadIdx.y * {D // 8} + threadIdx.x] = chunk_of<{D}>(threadIdx.y, threadIdx.x); }}"
    instance = Instance("toy.cu", "toy", (Parameter("y", np.dtype("int32"), pointer=True, const=False, optional=False),))
    y = np.zeros((rows, D // 8), "int32")
    run_text(compile_text(f"{source('attention_tile.cuh')}\n{toy}", (instance,)).run_toy, instance, (1, 1, 1), (D // 8, rows, 1), [y], 0, [0])
    assert (y % 8 == 0).all()
    return y // 8


@pytest.mark.parametrize("D", attention.FLASH_WIDTHS)
@in_simulator
def test_eight_rows_of_a_chunk_lie_in_eight_groups_of_banks(D):
    """Counted, since the simulator has no banks: every ldmatrix of every width is free of conflicts, and no two chunks share a place."""
    at = places(D, 24)
    for first in (0, 8, 16):
        assert all(len(set(column % 8)) == 8 for column in at[first : first + 8].T)
    assert sorted(at.reshape(-1)) == list(range(24 * D // 8))


def test_without_the_swizzle_they_collide():
    assert {D: max(sum((row * (D // 8)) % 8 == group for row in range(8)) for group in range(8)) for D in attention.FLASH_WIDTHS} == {
        40: 1, 64: 8, 80: 2, 160: 4}  # fmt: skip


def test_the_maximum_before_the_scale_needs_a_positive_one():
    arrays, keywords = inputs(*SHAPES["self_40"])
    for name in ("tuned", "few_keys"):
        assert "must be positive" in refuses(name, arrays, keywords | dict(scale=-0.5))


# ----- rung 6 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", attention.FLASH_WIDTHS)
@in_simulator
def test_a_block_takes_one_tile_of_queries_after_another(D, monkeypatch):
    monkeypatch.setattr(Simulator, "multiprocessors", 1)
    arrays, keywords = inputs(1, 2, 200, 77, D, False, 1)
    assert attention.few_keys_blocks(2, 200, 1) == 2  # four tiles
    with on_device(Simulator()):
        y = attention.few_keys(*arrays, **keywords)
    assert relative_l2(y, truth_of(arrays, keywords)) <= 1e-3


@pytest.mark.parametrize("heads, queries, blocks", [(16, 4096, 32), (16, 1024, 16), (16, 64, 1), (10, 9216, 48), (1, 1, 1), (0, 5, 1), (4, 0, 0)])
def test_blocks_of_a_head(heads, queries, blocks):
    assert attention.few_keys_blocks(heads, queries, 132) == blocks


# ----- rows ----------------------------------------------------------------------------------------------------------------------

MASKS = {"none": None, "of_keys": (1, 1, 1, 19), "of_queries": (13, 19), "of_images": (2, 1, 1, 19), "of_heads": (3, 1, 19), "whole": (2, 3, 13, 19)}


@pytest.mark.parametrize("scratch", [1 << 20, 4 * 6 * 19 * 5])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["rows", "half_rows"])
@in_simulator
def test_rows_with_masks_in_blocks_of_five_queries(name, mask, scratch, monkeypatch):
    monkeypatch.setattr(attention, "SCRATCH", scratch)
    dtype = "float32" if name == "rows" else "float16"
    arrays, keywords = inputs(2, 3, 13, 19, 24, False, 1, dtype)
    if MASKS[mask]:
        more = np.random.RandomState(0).randn(*MASKS[mask]).astype(dtype)
        more[..., 3] = -math.inf
        keywords |= dict(mask=more)
    truth = truth_of(arrays, keywords)
    with on_device(Simulator()) as _:
        y = getattr(attention, name)(*arrays, **keywords)
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous
    if dtype == "float32":
        assert_faithful(y, truth, reference.attention(*arrays, **keywords), name=mask)
    else:
        assert relative_l2(y, truth) <= 1e-3


@in_simulator
def test_rows_keep_the_scores_that_they_hold_at_once_within_the_scratch(monkeypatch):
    """The one head of the VAE is 512 wide: 130 queries and keys of it, 20 queries at once."""
    monkeypatch.setattr(attention, "SCRATCH", 4 * 130 * 20)
    device, sizes = Simulator(), []
    product = device.product
    monkeypatch.setattr(device, "product", lambda *a, **k: sizes.append(product(*a, **k)) or sizes[-1])
    arrays, keywords = inputs(1, 1, 130, 130, 512, False, 1)
    with on_device(device):
        y = attention.half_rows(*arrays, **keywords)
    assert relative_l2(y, truth_of(arrays, keywords)) <= 1e-3
    assert [s.shape[1] for s in sizes[::2]] == [20] * 6 + [10] and max(s.nbytes for s in sizes[::2]) <= attention.SCRATCH
    assert device.launches == ["softmax_scores<half>"] * 7


# ----- what the official models ask for ------------------------------------------------------------------------------------------

# name: N, S, T, D, causal -> the rung in float16. float32 takes `rows` everywhere.
CALLS = {
    "SD 1.x, 64 × 64": ((8, 4096, 4096, 40, False), "tuned"), "SD 1.x, 32 × 32": ((8, 1024, 1024, 80, False), "tuned"),
    "SD 1.x, 16 × 16": ((8, 256, 256, 160, False), "tuned"), "SD 1.x, 8 × 8": ((8, 64, 64, 160, False), "few_keys"),
    "SD 1.x, prompt": ((8, 4096, 77, 40, False), "few_keys"), "SD 1.x, prompt, 8 × 8": ((8, 64, 77, 160, False), "few_keys"),
    "SD 1.x, two prompts' length": ((8, 4096, 154, 40, False), "tuned"), "SD 2.x, 64 × 64": ((5, 4096, 4096, 64, False), "tuned"),
    "SD 2.x, 96 × 96": ((5, 9216, 9216, 64, False), "tuned"), "SD 2.x, 12 × 12": ((20, 144, 144, 64, False), "tuned"),
    "SD 2.x, prompt": ((20, 1024, 77, 64, False), "few_keys"), "CLIP ViT-L/14": ((12, 77, 77, 64, True), "few_keys"),
    "OpenCLIP ViT-H/14": ((16, 77, 77, 64, True), "few_keys"), "VAE": ((1, 4096, 4096, 512, False), "half_rows"),
}  # fmt: skip


def zeros(n, N, D, dtype):
    """[B, N, n, D] that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), (2, N, n, D))


def chosen(profile, arrays, keywords):
    ladder = [r for r in LADDERS["attention"] if r.owner in ("cupy", "any") and not r.lesson and (profile == "fast" or r.numerics == "exact")]
    with on_device(Simulator()):  # a GPU of no kind in particular: Hopper's rung is above these
        return next(r.name for r in reversed(ladder) if r.refuses(*arrays, **keywords) is None)


@pytest.mark.parametrize("call", CALLS)
def test_no_call_of_the_official_models_takes_the_reference(call):
    (N, S, T, D, causal), rung = CALLS[call]
    keywords = dict(scale=D**-0.5, mask=None, causal=causal)
    half, single = ([zeros(n, N, D, dtype) for n in (S, T, T)] for dtype in ("float16", "float32"))
    assert chosen("fast", half, keywords) == rung and chosen("exact", half, keywords) == "rows"
    assert chosen("fast", single, keywords) == chosen("exact", single, keywords) == "rows"


@pytest.mark.parametrize("dtype, rung", [("float16", "half_rows"), ("float32", "rows"), ("float64", "reference")])
def test_masks_and_other_widths(dtype, rung):
    q = zeros(9, 2, 40, dtype)
    assert chosen("fast", (q, q, q), dict(scale=0.1, mask=np.zeros((9, 9), dtype), causal=False)) == rung
    odd = zeros(9, 2, 24, dtype)
    assert chosen("fast", (odd, odd, zeros(9, 2, 11, dtype)), dict(scale=0.1, mask=None, causal=False)) == rung


# ----- a wait, a barrier, a swizzle taken out ------------------------------------------------------------------------------------

PLANTED = {  # what is wrong: (the text, what it becomes, which of its places, what the simulator says; None: wrong numbers)
    "no wait for K": ("copy_wait<PENDING>();", "", 0, None),
    "no wait for V": ("copy_wait<PENDING>();", "", 1, None),
    "one group too many pending": ("PENDING = 2 * STAGES - 3", "PENDING = 2 * STAGES - 2", 0, None),
    "no barrier before K is refilled": ("__syncthreads();", "", 0, "a race: y"),
    "no barrier before V is read": ("__syncthreads();", "", 1, "a race: y"),
    "V asked for before its buffer is free": ("ask(ks, of_k, tile), ask(vs, of_v, tile)", "ask(ks, of_k, tile), ask(vs, of_v, tile + 1)", 0, None),
    "the loader does not swizzle": ("shared + chunk_of<D>(r + k * R, c)", "shared + (r + k * R) * D + c * 8", 0, None),
    "the reader of V does not swizzle": ("vs + chunk_of<D>(j * 16 + lane % 16, c + lane / 16)",
                                         "vs + (j * 16 + lane % 16) * D + (c + lane / 16) * 8", 0, None),
    "a last key that is not hidden": ("> min(keys, ahead + s0)", "> ahead + s0 + KEYS", 0, None),
}  # fmt: skip


def tuned_with(text, D=64, variant=(4, 1, 64, 2, 3), S=70, T=200):
    """Rung 5 by the given text: its error against float64, or the simulator's complaint."""
    instance = attention.TUNED(D, *variant)
    f = getattr(compile_text(text, (instance,)), simulator.symbol(instance))
    (q, k, v), keywords = inputs(1, 1, S, T, D, False, 1)
    arrays = [np.ascontiguousarray(a.transpose(0, 2, 1, 3)) for a in (q, k, v)]
    y = np.full_like(arrays[0], np.nan)
    numbers = [np.int32(1), np.int32(S), np.int32(T), np.float32(keywords["scale"] * math.log2(math.e)), np.int32(0)]
    run_text(f, instance, (math.ceil(S / (16 * variant[0] * variant[1])), 1, 1), (32 * variant[0], 1, 1), [*arrays, y, *numbers],
             attention.tuned_bytes(D, variant), (simulator.FORWARD, simulator.BACKWARD, simulator.SHUFFLED))  # fmt: skip
    return relative_l2(y.transpose(0, 2, 1, 3), truth_of((q, k, v), keywords))


@in_simulator
def test_the_text_as_it_stands_is_right():
    assert tuned_with(source("attention/5_tuned.cu")) <= 1e-3


@pytest.mark.parametrize("bug", PLANTED)
@in_simulator
def test_the_simulator_finds_a_planted_bug(bug):
    right, wrong, place, complaint = PLANTED[bug]
    pieces = source("attention/5_tuned.cu").split(right)
    assert len(pieces) > place + 1
    broken = right.join(pieces[: place + 1]) + wrong + right.join(pieces[place + 1 :])
    if complaint:
        with pytest.raises(SimulatorError, match=complaint):
            tuned_with(broken)
    else:
        try:
            error = tuned_with(broken)
        except SimulatorError as found:
            assert not str(found).startswith("g++")
            return
        assert np.isnan(error) or error > 1e-3, "nobody noticed"


# ----- layouts -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flash", "tuned", "few_keys"])
@in_simulator
def test_heads_stay_inside_tokens(name):
    """Joining the heads again is a view: no copy in `multi_head`."""
    arrays, keywords = inputs(*SHAPES["cross_40"])
    with on_device(Simulator()):
        y = RUNGS[name](*arrays, **keywords)
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous


@pytest.mark.parametrize("width", attention.FLASH_WIDTHS)
def test_flash_fits_into_every_gpus_shared_memory(width):
    assert attention.flash_bytes(width) <= 99 << 10
