// Idea:           the copy engine and the products of a warpgroup alone, on numbers that are known: swizzles, descriptors, fragments, zero filling.
// Differs:        from rung 1 by the instructions: those of hopper.cuh.
// Work split:     one warpgroup; thread 0 asks for the boxes.
// Global traffic: some kilobytes.
// Limits:         compute capability 9.0; the shapes that minisd/ops/cuda/probe.py draws.
// Numerics:       products and sums of small whole numbers are exact in any order, so that layouts alone are asked for.
// Source:         PTX ISA 8.0, sections 5.5 (tensors), 9.7.8.24 (cp.async.bulk.tensor), 9.7.12.15 (mbarrier), 9.7.14 (wgmma).
#include "common.cuh"
#include "hopper.cuh"

// Boxes begin at a multiple of 1024 bytes; the barrier lies behind them.
__device__ __forceinline__ half* boxes_in(char* shared) { return reinterpret_cast<half*>(shared + (1024 - shared_address(shared) % 1024)); }
__device__ __forceinline__ void make(Barrier* barrier) {
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        barriers_are_made();
    }
    __syncthreads();
}

// One box of `size` halves, its corner at (column, row) -> y as the box lies in shared memory.
__global__ void __launch_bounds__(128)
probe_tma(const __grid_constant__ TensorMap x, half* __restrict__ y, int size, int column, int row) {
    DYNAMIC_SHARED(char, shared);
    half* box = boxes_in(shared);
    Barrier* barrier = reinterpret_cast<Barrier*>(box + size);
    make(barrier);
    if (threadIdx.x == 0) {
        barrier_expect(barrier, 2 * size);
        tma_load(box, x, barrier, column, row);
    }
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < size; i += 128) y[i] = box[i];
}

// D [64, N] = A [64, 64] B [64, N]: d[i] of thread t at y[t N / 2 + i]. B lies by k, [N, 64], or by n, [64, N]; A comes from shared memory, or
// from registers: those of step k and thread t at fragments[(128 k + t) 4 …].
template <int N, bool B_BY_N, bool IN_REGISTERS>
__global__ void __launch_bounds__(128)
probe_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const int* __restrict__ fragments, float* __restrict__ y) {
    DYNAMIC_SHARED(char, shared);
    half *as = boxes_in(shared), *bs = as + 64 * 64;
    Barrier* barrier = reinterpret_cast<Barrier*>(bs + 64 * N);
    make(barrier);
    if (threadIdx.x == 0) {
        barrier_expect(barrier, 2 * 64 * (64 + N));
        tma_load(as, a, barrier, 0, 0);
        if constexpr (B_BY_N)
            for (int n = 0; n < N; n += 32) tma_load(bs + 64 * n, b, barrier, n, 0);
        else
            tma_load(bs, b, barrier, 0, 0);
    }
    barrier_wait(barrier, 0);

    float d[N / 2];
    unsigned left[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) left[k][i] = fragments[(128 * k + threadIdx.x) * 4 + i];
    const Descriptor da = descriptor_by_k(as), db = B_BY_N ? descriptor_by_n(bs, 64) : descriptor_by_k(bs);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const Descriptor from_b = further(db, k * (B_BY_N ? NEXT_16_BY_N : NEXT_16_BY_K));
        if constexpr (IN_REGISTERS) wgmma<N, B_BY_N>(d, left[k], from_b, k > 0);
        else wgmma<N, B_BY_N>(d, further(da, k * NEXT_16_BY_K), from_b, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep(d);
#pragma unroll
    for (int i = 0; i < N / 2; i++) y[threadIdx.x * (N / 2) + i] = d[i];
}
