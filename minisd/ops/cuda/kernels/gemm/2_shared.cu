// Idea:           a block of 16 x 16 threads needs the same 16 rows of x and of w: load each number once, into shared memory.
// Differs:        from rung 1: K in slices of 32, each slice of x and w read from global memory once a block.
// Work split:     grid (N / 16, M / 16), block (16, 16); 4.1 KiB of shared memory.
// Global traffic: 2 M N K / 16 sizeof(T) bytes, in runs of 32 elements.
// Limits:         T half or float; any M, N, K.
// Numerics:       float sums of one slice, the slices added.
// Source:         CUDA C++ Programming Guide, "Shared Memory"; siboehm, "How to Optimize a CUDA Matmul Kernel", kernel 3.
#include "common.cuh"

// x [M, K], w [N, K], b [N] -> y [M, N]
template <typename T>
__global__ void __launch_bounds__(256)
gemm_shared(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ OPTIONAL b, T* __restrict__ y, int M, int N, int K) {
    __shared__ float xs[16][33], ws[16][33];  // 33: the 16 threads that read one column hit 16 banks
    const int tx = threadIdx.x, ty = threadIdx.y, n0 = blockIdx.x * 16, m0 = blockIdx.y * 16;
    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += 32) {
        for (int k = tx; k < 32; k += 16) {  // xs[i, k] = x[m0 + i, k0 + k]
            xs[ty][k] = m0 + ty < M && k0 + k < K ? to_float(x[(long long)(m0 + ty) * K + k0 + k]) : 0.0f;
            ws[ty][k] = n0 + ty < N && k0 + k < K ? to_float(w[(long long)(n0 + ty) * K + k0 + k]) : 0.0f;
        }
        __syncthreads();
        float run = 0.0f;
        for (int k = 0; k < 32; k++) run += xs[ty][k] * ws[tx][k];
        sum += run;
        __syncthreads();
    }
    const int m = m0 + ty, n = n0 + tx;
    if (m < M && n < N) y[(long long)m * N + n] = from_float<T>(b ? sum + to_float(b[n]) : sum);
}
