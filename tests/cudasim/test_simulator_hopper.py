"""Barriers, TMA and wgmma in the simulator: right once, and every mistake that can be planted is found."""

import numpy as np
import pytest

from minisd.ops import reference
from minisd.ops.cuda import hopper
from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.kernel import KERNELS, source
from minisd.ops.cuda.tensor_map import TensorMap
from tests.cudasim import simulator
from tests.cudasim.conftest import array
from tests.cudasim.simulator import FORWARD, Simulator, SimulatorError, compile_text, needs_simulator
from tests.numerics import relative_l2

pytestmark = needs_simulator


def halves(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype("float16")


# ----- a ring of two buffers, one warpgroup, one thread that loads; each bug is one number -----------------------------------------

RING = """
#include "common.cuh"
#include "hopper.cuh"
enum { NONE, NO_WAIT_FOR_FULL, NO_WAIT_FOR_EMPTY, WRONG_PARITY, MORE_BYTES, FEWER_BYTES, RELEASED_EARLY, NO_WAIT_FOR_PRODUCT, NO_FENCE,
       NO_COMMIT, BARRIERS_NOT_MADE_KNOWN, OTHER_SWIZZLE, SUM_WRITTEN, SUM_READ, ONE_WARP_ELSEWHERE, ONE_WARP_GONE, TOO_MANY_ARRIVE,
       TOO_FEW_ARRIVE, BARRIER_OVERWRITTEN, UNALIGNED_BLOCK, BARRIER_NOT_MADE };

// y [64, 64] = a [64, K] b [64, K]^T
__global__ void toy(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* y, int slices, int bug) {
    DYNAMIC_SHARED(char, shared);
    half* ring = (half*)(shared + (1024 - shared_address(shared) % 1024));
    if (bug == UNALIGNED_BLOCK) ring += 64;
    Barrier *full = (Barrier*)(ring + 4 * 4096), *empty = full + 2;
    const int t = threadIdx.x;
    if (t == 0) {
        for (int i = 0; i < 2; i++) barrier_init(full + i, 1), barrier_init(empty + i, bug == TOO_FEW_ARRIVE ? 5 : 4);
        if (bug != BARRIERS_NOT_MADE_KNOWN) barriers_are_made();
        if (bug == BARRIER_OVERWRITTEN) full[1].state = 0;
    }
    __syncthreads();
    if (t >= 128) {
        if (t > 128) return;
        for (int s = 0; s < slices; s++) {
            const int i = s % 2;
            if (s >= 2 && bug != NO_WAIT_FOR_EMPTY) barrier_wait(empty + i, (s / 2 - 1) % 2);
            barrier_expect(full + i + (bug == BARRIER_NOT_MADE ? 7 : 0), 16384 + (bug == MORE_BYTES ? 128 : bug == FEWER_BYTES ? -8192 : 0));
            tma_load(ring + i * 8192, a, full + i, s * 64, 0);
            tma_load(ring + i * 8192 + 4096, b, full + i, s * 64, 0);
        }
        return;
    }
    if (bug == ONE_WARP_GONE && t >= 96) return;
    float d[32];
    for (int i = 0; i < 32; i++) d[i] = 0.0f;
    float peeked = 0.0f;
    for (int s = 0; s < slices; s++) {
        const int i = s % 2;
        if (bug != NO_WAIT_FOR_FULL) barrier_wait(full + i, bug == WRONG_PARITY ? 0 : s / 2 % 2);
        if (bug != NO_FENCE) wgmma_fence();
        const Descriptor da = descriptor(ring + i * 8192, 16, 1024, bug == OTHER_SWIZZLE ? 2 : 1), db = descriptor_by_k(ring + i * 8192 + 4096);
        for (int k = 0; k < 4; k++)
            if (bug != ONE_WARP_ELSEWHERE || t >= 32 || k) wgmma<64, false>(d, further(da, 32 * k), further(db, 32 * k), true);
        if (bug != NO_COMMIT) wgmma_commit();
        if (bug == RELEASED_EARLY && t % 32 == 0) barrier_arrive(empty + i);
        if (bug == SUM_WRITTEN && t == 70) d[3] = 0.0f;
        if (bug == SUM_READ) peeked += d[0];
        if (bug != NO_WAIT_FOR_PRODUCT || s + 1 < slices) wgmma_wait<0>();
        if (bug != RELEASED_EARLY && t % 32 == 0) barrier_arrive(empty + i);
        if (bug == TOO_MANY_ARRIVE && t % 32 == 1) barrier_arrive(empty + i);
    }
    for (int i = 0; i < 32; i++) y[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + t % 4 * 2 + i % 2] = d[i] + peeked;
}"""
BUGS = ("NONE NO_WAIT_FOR_FULL NO_WAIT_FOR_EMPTY WRONG_PARITY MORE_BYTES FEWER_BYTES RELEASED_EARLY NO_WAIT_FOR_PRODUCT NO_FENCE NO_COMMIT "
        "BARRIERS_NOT_MADE_KNOWN OTHER_SWIZZLE SUM_WRITTEN SUM_READ ONE_WARP_ELSEWHERE ONE_WARP_GONE TOO_MANY_ARRIVE TOO_FEW_ARRIVE "
        "BARRIER_OVERWRITTEN UNALIGNED_BLOCK BARRIER_NOT_MADE").split()  # fmt: skip


def ring(launch, bug="NONE", slices=5):
    """The product by the ring, and what it should be."""
    a, b = halves(64, 64 * slices), halves(64, 64 * slices, seed=1)
    maps = TensorMap(a, (64, 64), 128), TensorMap(b, (64, 64), 128)
    y = launch(RING, *maps, array(64, 64), slices, BUGS.index(bug), block=160, shared=34 << 10)[2]
    return y, a.astype("float64") @ b.T.astype("float64")


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_the_ring_makes_a_matrix_product(launch, slices):
    y, truth = ring(launch, slices=slices)
    assert relative_l2(y, truth) <= 1e-6


FOUND = {
    "NO_WAIT_FOR_FULL": "multiplies what a TMA load has not brought yet|overwrites what a product under way still reads",
    "NO_WAIT_FOR_EMPTY": "barrier_expect: thread 128 arrives at a barrier that waits for nobody|tma_load: thread 128 overwrites",
    "WRONG_PARITY": "deadlock|multiplies what a TMA load has not brought yet|a race: y",
    "MORE_BYTES": r"deadlock: thread 0 at barrier_wait, line 0;.* the barrier at byte \d+ is in phase 0, without 0 arrivals and 128 bytes;",
    "FEWER_BYTES": "a barrier completes phase 0 before all its loads have landed: too few bytes were announced",
    "RELEASED_EARLY": "tma_load: thread 128 overwrites what a product under way still reads",
    "NO_WAIT_FOR_PRODUCT": "thread .* ends while its products are under way",
    "NO_FENCE": "wgmma: thread .* begins a group of products without a fence",
    "NO_COMMIT": "overwrites what a product under way still reads|ends while its products are under way",
    "BARRIERS_NOT_MADE_KNOWN": "tma_load: thread 128 uses a barrier before barriers_are_made",
    "SUM_WRITTEN": "thread 70 writes to an accumulator of a product that is under way",
    "ONE_WARP_ELSEWHERE": "divergent warpgroup: thread",
    "ONE_WARP_GONE": "thread .* waits for products, thread 96 has returned",
    "TOO_MANY_ARRIVE": "barrier_arrive: thread .* arrives at a barrier that waits for nobody|tma_load: thread 128 overwrites|deadlock",
    "TOO_FEW_ARRIVE": r"deadlock: thread 0 at barrier_wait.* in phase 0, without 1 arrivals and 0 bytes",
    "BARRIER_OVERWRITTEN": "thread .* names a barrier that is not made, or was overwritten",
    "OTHER_SWIZZLE": "an operand whose block does not begin at a multiple of eight rows",  # rows of 64 bytes: there is no third 16 k
    "UNALIGNED_BLOCK": "an operand whose block does not begin at a multiple of eight rows",
    "BARRIER_NOT_MADE": "barrier_expect: thread 128 names a barrier that is not made",
}


@pytest.mark.parametrize("bug", FOUND)
def test_a_mistake_is_reported(launch, bug):
    with pytest.raises(SimulatorError, match=FOUND[bug]):
        ring(launch, bug)


def test_a_sum_is_not_a_number_while_it_is_made(launch):
    assert np.isnan(ring(launch, "SUM_READ")[0]).any(axis=1).all()


def test_every_bug_has_a_test():
    assert set(BUGS) == {"NONE", "SUM_READ", *FOUND}


# ----- TMA -------------------------------------------------------------------------------------------------------------------------

BOX = """
#include "common.cuh"
#include "hopper.cuh"
// y: the shared memory that one box of four axes was loaded to
__global__ void toy(const __grid_constant__ TensorMap x, half* y, int n, int c0, int c1, int c2, int c3, int bug) {
    DYNAMIC_SHARED(char, shared);
    half* to = (half*)(shared + (1024 - shared_address(shared) % 1024));
    Barrier* full = (Barrier*)(to + n);
    if (threadIdx.x == 0) {
        barrier_init(full, 1);
        barriers_are_made();
        barrier_expect(full, 2 * n);
        if (bug == 1) tma_load(to, x, full, c0, c1, c2);
        else tma_load(to + (bug == 2 ? 8 : bug == 3 ? 1024 : 0), x, full, c0, c1, c2, c3);
    }
    __syncthreads();
    if (bug != 4) barrier_wait(full, 0);
    for (int i = threadIdx.x; i < n; i += 32) y[i] = to[i];
}"""


def load_box(launch, x, box, swizzle, corner, bug=0):
    n = int(np.prod(box))
    return launch(BOX, TensorMap(x, box, swizzle), array(n, dtype="float16"), n, *corner[::-1], bug, shared=2 * n + 2048)[1]


def unswizzled(y, row_bytes):
    """Undoes the picture of docs/kernels/hopper.md: of the 16-byte pieces of each row, number c lies where c xor (address / 128) says."""
    chunks = row_bytes // 16
    at = np.arange(y.size // 8)
    return y.reshape(-1, 8)[at ^ (at // 8 % chunks)].reshape(-1)


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("corner", [(0, 0, 0, 0), (1, -1, -2, 0), (0, 3, 2, 8), (1, 5, 5, 32), (-2, 0, 0, -8), (7, 0, 0, 0)])
def test_a_box_lands_swizzled_and_is_zero_outside_of_the_array(launch, swizzle, corner):
    x = halves(2, 6, 5, 40)
    box = (2, 3, 4, swizzle // 2)
    padded = np.zeros([n + 2 * 80 for n in x.shape], "float16")
    padded[80:82, 80:86, 80:85, 80:120] = x
    wanted = padded[tuple(slice(80 + c, 80 + c + n) for c, n in zip(corner, box))]
    assert np.array_equal(unswizzled(load_box(launch, x, box, swizzle, corner), swizzle), wanted.reshape(-1))


def test_a_box_of_an_array_with_strides(launch):
    """Weights [9, C, O] in blocks of 32 columns: a view, never copied."""
    w = halves(3, 16, 96)
    blocks = w.reshape(3, 16, 3, 32).transpose(0, 2, 1, 3)
    y = unswizzled(load_box(launch, blocks, (1, 2, 8, 32), 64, (1, 1, 8, 0)), 64).reshape(2, 8, 32)
    assert np.array_equal(y, blocks[1, 1:3, 8:16])


@pytest.mark.parametrize(
    "bug, message",
    [(1, "a corner of another rank than the tensor's"), (2, "an address that is no multiple of 128"), (3, "leaves the dynamic shared memory"),
     (4, "ends while TMA loads are under way")],
)  # fmt: skip
def test_a_wrong_load_is_reported(launch, bug, message):
    with pytest.raises(SimulatorError, match=message):
        load_box(launch, halves(2, 6, 5, 40), (1, 3, 4, 64), 128, (0, 0, 0, 0), bug)


# ----- wgmma: every width and both layouts of B -----------------------------------------------------------------------------------

PRODUCT = """
#include "common.cuh"
#include "hopper.cuh"
// y [64, N] = (1, then) a [64, 16] b: a from registers where `in_registers`; b [N, 64] by k, or [N / 32, 16, 32] by n
template <int N, bool B_BY_N> __device__ void multiply(const TensorMap& a, const TensorMap& b, const half* plain, float* y, int bug) {
    DYNAMIC_SHARED(char, shared);
    half* to_a = (half*)(shared + (1024 - shared_address(shared) % 1024)), *to_b = to_a + 4096;
    Barrier* full = (Barrier*)(to_b + 64 * 160);
    const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    if (t == 0) {
        barrier_init(full, 1), barriers_are_made();
        barrier_expect(full, 8192 + (B_BY_N ? 16 : 64) * N * 2);
        tma_load(to_a, a, full, 0, 0);
        if constexpr (B_BY_N) tma_load(to_b, b, full, 0, 0, 0);
        else tma_load(to_b, b, full, 0, 0);
    }
    __syncthreads();
    barrier_wait(full, 0);
    float d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = 1.0f;
    wgmma_fence();
    if constexpr (N == 96 || B_BY_N) {
        unsigned p[4];
        for (int i = 0; i < 4; i++) p[i] = *(const unsigned*)(plain + (row + i % 2 * 8) * 64 + column + i / 2 * 8);
        wgmma<N, B_BY_N>(d, p, B_BY_N ? descriptor_by_n(to_b, 16) : descriptor_by_k(to_b), bug != 1);
        if (bug == 2) p[1] = 0;
        wgmma_commit(), wgmma_wait<0>();
    } else {
        wgmma<N, B_BY_N>(d, descriptor(to_a, 16, bug == 3 ? 512 : 1024, 1), descriptor_by_k(to_b), bug != 1);
        wgmma_commit(), wgmma_wait<0>();
    }
    for (int i = 0; i < N / 2; i++) y[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
}
__global__ void toy(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const half* plain, float* y, int N, int by_n, int bug) {
    if (N == 64 && !by_n) multiply<64, false>(a, b, plain, y, bug);
    if (N == 64 && by_n) multiply<64, true>(a, b, plain, y, bug);
    if (N == 96) multiply<96, true>(a, b, plain, y, bug);
    if (N == 128) multiply<128, false>(a, b, plain, y, bug);
    if (N == 160 && !by_n) multiply<160, false>(a, b, plain, y, bug);
    if (N == 160 && by_n) multiply<160, true>(a, b, plain, y, bug);
}"""


def multiplied(launch, N, by_n, bug=0):
    a, b = halves(64, 64), halves(N, 64, seed=N)
    blocks = np.ascontiguousarray(b[:, :16].T).reshape(16, N // 32, 32).transpose(1, 0, 2)
    mapped = TensorMap(blocks, (N // 32, 16, 32), 64) if by_n else TensorMap(b, (N, 64), 128)
    y = launch(PRODUCT, TensorMap(a, (64, 64), 128), mapped, a, array(64, N), N, int(by_n), bug, block=128, shared=32 << 10)[3]
    return y, a[:, :16].astype("float64") @ b[:, :16].T.astype("float64")


@pytest.mark.parametrize("N, by_n", [(64, False), (64, True), (96, True), (128, False), (160, False), (160, True)])
def test_products_of_every_width(launch, N, by_n):
    y, truth = multiplied(launch, N, by_n)
    assert relative_l2(y, truth + 1.0) <= 1e-6
    y, truth = multiplied(launch, N, by_n, bug=1)
    assert relative_l2(y, truth) <= 1e-6, "without `add` what was there does not matter"


def test_an_operand_in_registers_is_read_as_late_as_the_wait(launch):
    y, truth = multiplied(launch, 64, True, bug=2)
    assert relative_l2(y, truth + 1.0) > 0.1


def test_a_descriptor_that_does_not_fit_the_box_gives_a_wrong_product(launch):
    y, truth = multiplied(launch, 128, False, bug=3)
    assert relative_l2(y, truth + 1.0) > 0.1


def test_half_a_warpgroup_cannot_multiply(launch):
    with pytest.raises(SimulatorError, match="multiplies in a warpgroup that is not whole"):
        text = '\n#include "hopper.cuh"\n__global__ void toy(float* y) { wgmma_wait<0>(); y[threadIdx.x] = 1.0f; }'
        launch(text, array(64), block=64, ways=[FORWARD])


# ----- real kernels, with a line taken out or changed ----------------------------------------------------------------------------


def product(random):
    x, w = random.randn(130, 456).astype("float16"), (random.randn(162, 456) / 20).astype("float16")
    return hopper.product_wgmma(x, w), x.astype("float64") @ w.T.astype("float64")


def convolution(random):
    x = random.randn(2, 3, 9, 72).astype("float16")
    w = (random.randn(3, 3, 72, 32) / 25).astype("float16").transpose(3, 2, 0, 1)
    wide = x.astype("float64"), w.astype("float64")
    return hopper.conv2d_wgmma(x, w, parts=1), reference.conv2d(*wide, None, stride=1, padding=((1, 1), (1, 1)))


def attention(random):
    q, k, v = (random.randn(1, 1, n, 40).astype("float16") for n in (70, 600, 600))
    keywords = dict(scale=0.2, mask=None, causal=False)
    return hopper.attention_wgmma(q, k, v, **keywords), reference.attention(*(a.astype("float64") for a in (q, k, v)), **keywords)


EXPRESSIONS = ("gemm_wgmma<128, 2>", "conv2d_wgmma<128, 1>", "attention_wgmma<40>")  # what these run
CHANGES = {  # what is run, its file, the line, what stands there instead, how it is found
    "no_fence": (product, "gemm/6_wgmma.cu", "            wgmma_fence();", "", "begins a group of products without a fence"),
    "too_few_arrivals": (product, "gemm/6_wgmma.cu", "barrier_init(empty + i, CLUSTER * CONSUMERS / WARP)",
                         "barrier_init(empty + i, 15)", "have arrived at a barrier"),
    "ends_before_its_neighbour": (product, "gemm/6_wgmma.cu", "(CLUSTER > 1) cluster_sync();\n    }\n    __device__ __forceinline__ static int",
                                  "(false) return;\n    }\n    __device__ __forceinline__ static int", "reaches into a block that has ended"),
    "keeps_its_share": (product, "gemm/6_wgmma.cu", "(1 << CLUSTER) - 1", "1 << rank()", "deadlock: .* and 8192 bytes"),
    "tells_only_itself": (product, "gemm/6_wgmma.cu", "barrier_arrive_in(empty + slice % STAGES, lane);",
                          "barrier_arrive_in(empty + slice % STAGES, rank());", "arrives at a barrier that waits for nobody|deadlock|overwrites"),
    "no_wait_for_empty": (convolution, "conv2d/6_wgmma.cu",
                          "if (begun >= STAGES) barrier_wait(empty + i, (begun / STAGES - 1) % 2);", "",
                          "arrives at a barrier that waits for nobody"),
    "bottom_rows_stored": (convolution, "conv2d/6_wgmma.cu", "h >= H || ", "", "a race: y|writes byte"),
    "values_not_awaited": (attention, "attention/7_wgmma.cu", "barrier_wait(v_full + tile % STAGES, tile / STAGES % 2);", "",
                           "multiplies what a TMA load has not brought yet"),
    "values_given_back_early": (attention, "attention/7_wgmma.cu", "        wgmma_wait<0>();\n        keep(sum);\n        leave(v_empty",
                                "        keep(sum);\n        leave(v_empty", "overwrites what a product under way still reads"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_line_of_a_kernel_is_found(name, monkeypatch):
    run, file, line, instead, message = CHANGES[name]
    text = source(file)
    assert text.count(line) == 1
    instances = tuple(i for k in KERNELS if k.file == file for i in k.all() if i.expression in EXPRESSIONS)
    monkeypatch.setattr(simulator, "library", lambda file: compile_text(text.replace(line, instead), instances))
    with on_device(Simulator(capability=90)), pytest.raises(SimulatorError, match=message):
        run(np.random.RandomState(0))


@pytest.mark.parametrize("run", [product, convolution, attention])
def test_the_kernels_as_they_are(run):
    with on_device(Simulator(capability=90)):
        y, truth = run(np.random.RandomState(0))
    assert relative_l2(y, truth) <= 1e-3


# ----- clusters --------------------------------------------------------------------------------------------------------------------

SHARED_BOX = """
#include "common.cuh"
#include "hopper.cuh"
// Block r of two fetches row r of x [2, 64] and sends it to both: y [2 blocks, 2 rows, 64]
__global__ void __launch_bounds__(32) __cluster_dims__(2, 1, 1)
toy(const __grid_constant__ TensorMap x, half* y, int bug) {
    DYNAMIC_SHARED(char, shared);
    half* to = (half*)(shared + (1024 - shared_address(shared) % 1024));
    Barrier *full = (Barrier*)(to + 1024), *told = full + 1;
    const int rank = cluster_rank();
    if (threadIdx.x == 0) {
        barrier_init(full, 1), barrier_init(told, 2), barriers_are_made();
        if (bug == 2) barrier_expect(full, 256), tma_load_to_all(to + 512 * rank, x, full, 3, 0, rank);
    }
    cluster_sync();
    if (threadIdx.x == 0 && bug != 2) barrier_expect(full, 256), tma_load_to_all(to + 512 * rank, x, full, bug == 1 ? 7 : 3, 0, rank);
    barrier_wait(full, 0);
    for (int i = threadIdx.x; i < 128; i += 32) y[blockIdx.x * 128 + i] = to[i / 64 * 512 + i % 64];
    if (bug == 3 && rank == 0) return;
    if (threadIdx.x < 2) barrier_arrive_in(told, threadIdx.x);
    barrier_wait(told, 0);
    cluster_sync();
}"""


def share(launch, bug=0, grid=4):
    x = halves(2, 64)
    y = launch(SHARED_BOX, TensorMap(x, (1, 64), 128), array(grid, 128, dtype="float16"), bug, grid=grid, shared=4096)[1]
    return y, x.reshape(-1)


def test_blocks_of_a_cluster_share_a_box(launch):
    y, x = share(launch)
    assert all(np.array_equal(part, x) for part in y)


@pytest.mark.parametrize(
    "bug, message",
    [(1, "tma_load_to_all: thread 0 names a block that its cluster does not have"), (2, "names a barrier that is not made"),
     (3, "barrier_arrive_in: thread .* reaches into a block that has ended")],
)  # fmt: skip
def test_a_mistake_between_blocks_is_reported(launch, bug, message):
    with pytest.raises(SimulatorError, match=message):
        share(launch, bug)


def test_a_grid_that_is_no_whole_number_of_clusters(launch):
    with pytest.raises(SimulatorError, match="3 blocks of 32 threads along x are no clusters of 2"):
        share(launch, grid=3)
