"""The simulator finds what is planted: each kernel here is right once, and wrong in one way."""

import re

import numpy as np
import pytest

from minisd.ops.cuda.device import on_device
from minisd.ops.cuda.kernel import FOLDER, source
from minisd.ops.cuda.norm import GROUP_SHUFFLES, group_norm_shuffles
from tests.cudasim import simulator
from tests.cudasim.conftest import array
from tests.cudasim.simulator import BACKWARD, FORWARD, SHUFFLED, Simulator, SimulatorError, compile_text, needs_simulator, run_text
from tests.numerics import relative_l2

pytestmark = needs_simulator
WAYS = (FORWARD, BACKWARD, SHUFFLED)

# ----- barriers and shared memory ------------------------------------------------------------------------------------------------

REVERSED = """
__global__ void toy(const float* x, float* y) {
    __shared__ float s[96];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[95 - threadIdx.x];
}"""


def test_shared_memory_and_a_barrier(launch):
    x = np.arange(96, dtype="float32")
    _, y = launch(REVERSED, x, array(96), block=96)
    assert np.array_equal(y, x[::-1])


def test_a_missing_barrier_is_a_race(launch):
    with pytest.raises(SimulatorError, match="a race: y depends on the order of the threads"):
        launch(REVERSED.replace("__syncthreads();", ""), np.arange(96, dtype="float32"), array(96), block=96)


def test_static_shared_memory_begins_as_nan_in_every_block(launch):
    text = """
    __global__ void toy(float* y) {
        __shared__ float s[8];
        if (blockIdx.x == 0) s[threadIdx.x] = 1.0f;
        __syncthreads();
        y[blockIdx.x * 8 + threadIdx.x] = s[threadIdx.x];
    }"""
    (y,) = launch(text, array(16, fill=0.0), grid=2, block=8)
    assert (y[:8] == 1.0).all() and np.isnan(y[8:]).all()


DYNAMIC = """
#include "common.cuh"
__global__ void toy(float* y, int n) {
    DYNAMIC_SHARED(float, s);
    y[threadIdx.x] = s[threadIdx.x * n];
}"""


def test_dynamic_shared_memory_begins_as_nan(launch):
    assert np.isnan(launch(DYNAMIC, array(32, fill=0.0), 1, shared=128)[0]).all()


def test_reading_beyond_dynamic_shared_memory(launch):
    with pytest.raises(SimulatorError, match="out of bounds: thread 16 of block .* reads"):
        launch(DYNAMIC, array(32, fill=0.0), 2, shared=128, ways=[FORWARD])


def test_half_a_warp_at_a_barrier_and_half_in_a_shuffle(launch):
    text = """
    __global__ void toy(float* y) {
        if (threadIdx.x < 16) __syncthreads();
        y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
        if (threadIdx.x >= 16) __syncthreads();
    }"""
    with pytest.raises(SimulatorError, match="deadlock: thread 0 at __syncthreads, line 3; thread 16 at __shfl_xor_sync, line 4;"):
        launch(text, array(64), block=64)


def test_threads_at_two_different_barriers(launch):
    text = """
    __global__ void toy(float* y) {
        if (threadIdx.x < 32) __syncthreads();
        else __syncthreads();
        y[threadIdx.x] = 1.0f;
    }"""
    with pytest.raises(SimulatorError, match="divergent barrier: thread 0 is at line 3, thread 32 at line 4"):
        launch(text, array(64), block=64)


def test_threads_that_have_returned_are_not_waited_for(launch):
    text = "__global__ void toy(float* y) { if (threadIdx.x >= 40) return; __syncthreads(); y[threadIdx.x] = 1.0f; }"
    (y,) = launch(text, array(64, fill=0.0), block=64)
    assert y.sum() == 40


# ----- warps -----------------------------------------------------------------------------------------------------------------------


def test_shuffles(launch):
    text = """
    #include "common.cuh"
    __global__ void toy(const float* x, float* y) {
        const float v = x[threadIdx.x];
        y[threadIdx.x] = warp_sum(v);
        y[32 + threadIdx.x] = warp_max(v);
        y[64 + threadIdx.x] = __shfl_sync(ALL_LANES, v, 5);
    }"""
    x = np.random.RandomState(0).randn(32).astype("float32")
    y = launch(text.replace("    #include", "#include"), x, array(96))[1].reshape(3, 32)
    assert (y[0] == y[0, 0]).all() and abs(y[0, 0] - x.sum()) < 1e-5
    assert (y[1] == x.max()).all() and (y[2] == x[5]).all()


def test_lanes_in_different_instructions(launch):
    text = """
    __global__ void toy(float* y) {
        float v = threadIdx.x;
        if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);
        else __syncwarp();
        y[threadIdx.x] = v;
    }"""
    with pytest.raises(SimulatorError, match="divergent warp: thread 0 is at __shfl_xor_sync, line 4, thread 16 at __syncwarp, line 5"):
        launch(text, array(32))


def test_a_lane_outside_its_own_mask(launch):
    text = "__global__ void toy(float* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }"
    with pytest.raises(SimulatorError, match="thread 16 calls __shfl_xor_sync, line 1, with a mask that does not name it"):
        launch(text, array(32), ways=[FORWARD])


def test_a_race_between_warps_shows_in_some_order(launch):
    """Warp 1 reads what warp 0 writes: right in order, and only there."""
    text = "__global__ void toy(float* y) { if (threadIdx.x < 32) y[threadIdx.x] = 7.0f; else y[threadIdx.x] = y[threadIdx.x - 32]; }"
    assert (launch(text, array(64, fill=0.0), block=64, ways=[FORWARD])[0] == 7.0).all()
    with pytest.raises(SimulatorError, match="a race"):
        launch(text, array(64, fill=0.0), block=64)


# ----- memory --------------------------------------------------------------------------------------------------------------------

SHIFTED = "__global__ void toy(const float* x, float* y, int by) { y[threadIdx.x] = x[(int)threadIdx.x + by]; }"


def test_reads_out_of_bounds_on_both_sides(launch):
    launch(SHIFTED, array(32, fill=1.0), array(32), 0)
    with pytest.raises(SimulatorError, match=r"thread 31 of block \(0, 0, 0\) reads byte 128 of x, which has 128 bytes"):
        launch(SHIFTED, array(32, fill=1.0), array(32), 1, ways=[FORWARD])
    with pytest.raises(SimulatorError, match=r"thread 0 of block \(0, 0, 0\) reads byte -4 of x, which has 128 bytes"):
        launch(SHIFTED, array(32, fill=1.0), array(32), -1, ways=[BACKWARD])


def test_a_store_out_of_bounds(launch):
    text = "__global__ void toy(float* y, int n) { if (threadIdx.x <= n) y[threadIdx.x] = 1.0f; }"
    with pytest.raises(SimulatorError, match="thread 16 .* writes byte 64 of y, which has 64 bytes"):
        launch(text, array(16), 16, ways=[FORWARD])


def test_a_store_beside_an_array_that_does_not_end_at_the_page(launch):
    text = "__global__ void toy(float* y, int n) { if (threadIdx.x <= n) y[threadIdx.x] = 1.0f; }"
    with pytest.raises(SimulatorError, match="y was written beside its 60 bytes"):
        launch(text, array(15), 15)


def test_a_store_to_an_input(launch):
    text = "__global__ void toy(const float* x) { ((float*)x)[threadIdx.x] = 1.0f; }"
    with pytest.raises(SimulatorError, match="writes byte 0 of x, which has 128 bytes and is const"):
        launch(text, array(32), ways=[FORWARD])


def test_null_is_out_of_bounds(launch):
    text = "__global__ void toy(const float* x, float* y) { y[0] = x[0]; }"
    with pytest.raises(SimulatorError, match="out of bounds: thread 0"):
        launch(text, None, array(1), block=1)


def test_a_misaligned_vector(launch):
    text = """
#include "common.cuh"
__global__ void toy(const float* x, float* y, int by) { store_vector(y, load_vector(x + by)); }"""
    launch(text, array(8, fill=2.0), array(4), 4, block=1)
    with pytest.raises(SimulatorError, match="a misaligned vector"):
        launch(text, array(8, fill=2.0), array(4), 1, block=1)


def test_an_index_beyond_a_shared_array(launch):
    text = "__global__ void toy(float* y, int n) { __shared__ float s[32]; s[threadIdx.x + n] = 1.0f; y[threadIdx.x] = s[threadIdx.x + n]; }"
    launch(text, array(32), 0)
    with pytest.raises(SimulatorError, match="undefined behaviour in thread 31"):
        launch(text, array(32), 1, ways=[FORWARD])


def test_an_index_that_overflows(launch):
    text = "__global__ void toy(float* y, int n) { y[n * n / n - n] = 1.0f; }"
    launch(text, array(1), 1000, block=1)
    with pytest.raises(SimulatorError, match="integer overflow"):
        launch(text, array(1), 100000, block=1)


def test_after_a_fault_the_next_launch_is_well(launch):
    with pytest.raises(SimulatorError):
        launch(SHIFTED, array(32, fill=1.0), array(32), 2000)
    assert (launch(SHIFTED, array(32, fill=1.0), array(32), 0)[1] == 1.0).all()


# ----- cp.async ------------------------------------------------------------------------------------------------------------------

COPY = """
#include "common.cuh"
#include "ptx.cuh"
__global__ void toy(const half* x, half* y, int n) {
    DYNAMIC_SHARED(half, s);
    const int t = threadIdx.x;
    copy_async_16(s + 8 * t, x + 8 * t, t < n);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    store_vector(y + 8 * t, load_vector(s + 8 * (31 - t)));
}"""


def copied(launch, text, n=32, shared=512):
    x = np.arange(256, dtype="float16")
    return x.reshape(32, 8), launch(text, x, array(256, dtype="float16"), n, shared=shared)[1].reshape(32, 8)


def test_cp_async(launch):
    x, y = copied(launch, COPY)
    assert np.array_equal(y, x[::-1])


def test_cp_async_fills_with_zeros_what_is_not_valid(launch):
    x, y = copied(launch, COPY, n=20)
    assert np.array_equal(y[::-1][:20], x[:20]) and (y[::-1][20:] == 0).all()


def test_a_missing_wait_leaves_nan(launch):
    assert np.isnan(copied(launch, COPY.replace("copy_wait<0>();", ""))[1]).all()


def test_a_wait_for_too_few_groups_leaves_nan(launch):
    assert np.isnan(copied(launch, COPY.replace("copy_wait<0>();", "copy_wait<1>();"))[1]).all()


def test_cp_async_beyond_shared_memory(launch):
    with pytest.raises(SimulatorError, match="cp.async: thread 31 leaves the dynamic shared memory"):
        copied(launch, COPY, shared=496)


def test_cp_async_to_a_misaligned_address(launch):
    with pytest.raises(SimulatorError, match="cp.async: thread 0 has an address that is no multiple of 16"):
        copied(launch, COPY.replace("s + 8 * t, x", "s + 8 * t + 1, x"), shared=1024)


# ----- tensor cores --------------------------------------------------------------------------------------------------------------

MMA = """
#include "common.cuh"
#include "ptx.cuh"
// c [16, 8] = a [16, 16] b [8, 16]^T, or a [16, 16] b [16, 8] where `transposed`
__global__ void toy(const half* a, const half* b, float* c, int transposed) {
    DYNAMIC_SHARED(half, s);
    const int l = threadIdx.x;
    for (int i = l; i < 256; i += 32) s[i / 16 * STRIDE + i % 16] = a[i];
    half* t = s + 16 * STRIDE;
    for (int i = l; i < 128; i += 32) t[transposed ? i / 8 * 8 + i % 8 : i / 16 * 16 + i % 16] = b[i];
    __syncthreads();
    unsigned fa[4], fb[2];
    ldmatrix<4>(fa, s + l % 16 * STRIDE + l / 16 * 8);
    if (transposed) ldmatrix_transposed<2>(fb, t + l % 16 * 8);
    else ldmatrix<2>(fb, t + l % 8 * 16 + l / 8 % 2 * 8);
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_16x8x16(acc, fa, fb);
    const int g = l / 4, q = l % 4 * 2;
    c[g * 8 + q] = acc[0], c[g * 8 + q + 1] = acc[1], c[(g + 8) * 8 + q] = acc[2], c[(g + 8) * 8 + q + 1] = acc[3];
}"""


@pytest.mark.parametrize("transposed", [0, 1])
def test_mma_and_ldmatrix_make_a_matrix_product(launch, transposed):
    random = np.random.RandomState(0)
    a, b = random.randn(16, 16).astype("float16"), random.randn(*((16, 8) if transposed else (8, 16))).astype("float16")
    c = launch(MMA.replace("STRIDE", "24"), a, b, array(16, 8), transposed, shared=2048)[2]
    truth = a.astype("float64") @ (b if transposed else b.T).astype("float64")
    assert relative_l2(c, truth) <= 1e-6


def test_a_wrong_stride_gives_a_wrong_product(launch):
    random = np.random.RandomState(0)
    a, b = random.randn(16, 16).astype("float16"), random.randn(8, 16).astype("float16")
    text = MMA.replace("STRIDE", "24").replace("l % 16 * 24", "l % 16 * 16")
    assert not relative_l2(launch(text, a, b, array(16, 8), 0, shared=2048)[2], a.astype("float64") @ b.T.astype("float64")) <= 0.1


def test_mma_of_depth_eight(launch):
    text = """
#include "ptx.cuh"
__global__ void toy(const half* a, const half* b, float* c) {
    const int g = threadIdx.x / 4, q = threadIdx.x % 4 * 2;
    const unsigned left[2] = {*(const unsigned*)(a + g * 8 + q), *(const unsigned*)(a + (g + 8) * 8 + q)};
    float acc[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    mma_16x8x8(acc, left, *(const unsigned*)(b + g * 8 + q));
    c[g * 8 + q] = acc[0], c[g * 8 + q + 1] = acc[1], c[(g + 8) * 8 + q] = acc[2], c[(g + 8) * 8 + q + 1] = acc[3];
}"""
    random = np.random.RandomState(0)
    a, b = random.randn(16, 8).astype("float16"), random.randn(8, 8).astype("float16")
    c = launch(text, a, b, array(16, 8))[2]
    assert relative_l2(c, 1 + a.astype("float64") @ b.T.astype("float64")) <= 1e-6


def test_half_a_warp_cannot_multiply(launch):
    text = """
#include "ptx.cuh"
__global__ void toy(float* y) {
    float c[4] = {};
    unsigned a[4] = {}, b[2] = {};
    if (threadIdx.x < 16) mma_16x8x16(c, a, b);
    y[threadIdx.x] = c[0] + __shfl_sync(0xffffffffu, 1.0f, 0);
}"""
    with pytest.raises(SimulatorError, match="divergent warp: thread 0 is at mma, line 0, thread 16 at __shfl_sync"):
        launch(text, array(32))


# ----- a real kernel, with a line taken out --------------------------------------------------------------------------------------


def norm_with(text, launch_ways=WAYS):
    """Group norm by the given text: its error against float64, or the simulator's complaint."""
    random = np.random.RandomState(0)
    x, w, b = random.randn(1, 60, 16).astype("float32"), random.randn(16).astype("float32"), random.randn(16).astype("float32")
    instance = GROUP_SHUFFLES("float")
    f = getattr(compile_text(text, (instance,)), simulator.symbol(instance))
    y = np.full_like(x, np.nan)
    numbers = [np.int32(60), np.int32(16), np.int32(4), np.float32(1e-5), np.int32(0)]
    run_text(f, instance, (4, 1, 1), (256, 1, 1), [x, w, b, y, *numbers], 0, launch_ways)
    g = x.astype("float64").reshape(1, 60, 4, 4)
    g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-5)
    return relative_l2(y, g.reshape(1, 60, 16) * w + b)


def test_a_barrier_taken_out_of_group_norm():
    text = source("group_norm/2_shuffles.cu")
    assert norm_with(text) <= 1e-6
    broken, count = re.subn(r"__syncthreads\(\);", "", text)
    assert count == 1
    with pytest.raises(SimulatorError, match="a race: y"):
        norm_with(broken)


def test_launchers_run_on_the_simulator():
    x = np.random.RandomState(0).randn(1, 3, 5, 8).astype("float16")
    device = Simulator()
    with on_device(device):
        y = group_norm_shuffles(x, x[0, 0, 0], x[0, 0, 1], groups=2, eps=1e-5, act="silu")
    assert y.dtype == np.float16 and np.isfinite(y).all() and device.launches == ["group_norm_shuffles<half>"]


def test_a_text_that_does_not_compile_shows_the_line():
    with pytest.raises(SimulatorError, match=r"toy.cu:3.*was not declared"):
        compile_text('#line 3 "toy.cu"\n__global__ void toy(int n) { n = m; }', ())


def test_kernels_lie_in_the_package():
    assert FOLDER.is_dir() and (FOLDER / "common.cuh").exists()
