// Idea:           each instruction of ptx.cuh alone, on numbers that are known: what a GPU answers is compared with the simulator, bit for bit.
// Differs:        the lowest rung.
// Work split:     one warp; probe_exp2 one thread a number.
// Global traffic: some kilobytes.
// Limits:         the shapes that minisd/ops/cuda/probe.py draws.
// Numerics:       products and sums of small whole numbers are exact in any order, so that layouts alone are asked for.
// Source:         PTX ISA 8.0, sections 9.7.13.4 (mma), 9.7.13.5 (ldmatrix), 9.7.8.24 (cp.async), 9.7.3.20 (ex2).
#include "common.cuh"
#include "ptx.cuh"

// d = c + a b of one tile: the registers of lane l are a[4 l …], b[2 l …], c[4 l …], d[4 l …]; a and b hold two halves each.
__global__ void __launch_bounds__(32)
probe_mma(const int* __restrict__ a, const int* __restrict__ b, const float* __restrict__ c, float* __restrict__ d) {
    const int lane = threadIdx.x;
    unsigned left[4], right[2];
    float sum[4];
    for (int i = 0; i < 4; i++) left[i] = a[4 * lane + i], sum[i] = c[4 * lane + i];
    for (int i = 0; i < 2; i++) right[i] = b[2 * lane + i];
    mma_16x8x16(sum, left, right);
    for (int i = 0; i < 4; i++) d[4 * lane + i] = sum[i];
}

// x [8 N, 8], whose rows lie 48 bytes apart in shared memory -> the N registers of lane l at r[2 N l …], two halves each
template <int N, bool TRANSPOSED>
__global__ void __launch_bounds__(32)
probe_ldmatrix(const half* __restrict__ x, half* __restrict__ r) {
    DYNAMIC_SHARED(half, rows);
    const int lane = threadIdx.x, mine = lane % (8 * N);
    if (lane < 8 * N)
        for (int i = 0; i < 8; i++) rows[24 * lane + i] = x[8 * lane + i];
    __syncthreads();
    unsigned loaded[N];
    if constexpr (TRANSPOSED)
        ldmatrix_transposed<N>(loaded, rows + 24 * mine);
    else
        ldmatrix<N>(loaded, rows + 24 * mine);
    for (int i = 0; i < N; i++) *reinterpret_cast<unsigned*>(r + 2 * (N * lane + i)) = loaded[i];
}

// y[31 − l] = x[l], eight halves each, by way of shared memory; zeros where not valid[l].
__global__ void __launch_bounds__(32)
probe_copy(const half* __restrict__ x, const int* __restrict__ valid, half* __restrict__ y) {
    DYNAMIC_SHARED(half, shared);
    const int lane = threadIdx.x;
    copy_async_16(shared + 8 * lane, x + 8 * lane, valid[lane]);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    for (int i = 0; i < 8; i++) y[8 * lane + i] = shared[8 * (31 - lane) + i];
}

// y = 2^x
__global__ void __launch_bounds__(128)
probe_exp2(const float* __restrict__ x, float* __restrict__ y, int n) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    if (i < n) y[i] = exp2_fast(x[i]);
}
