// Idea:           a thread makes 4 x 4 numbers: 8 numbers from shared memory give 16 products, where rung 2 has 2 for 1.
// Differs:        from rung 2: a tile of 64 x 64 for 256 threads; sums in registers, operands transposed in shared memory.
// Work split:     grid (N / 64, M / 64), block 256; 8.5 KiB of shared memory.
// Global traffic: 2 M N K / 64 sizeof(T) bytes, in runs of 16 elements.
// Limits:         T half or float; any M, N, K.
// Numerics:       float sums in four slices of 16, these sums of 64 added.
// Source:         siboehm, "How to Optimize a CUDA Matmul Kernel", kernel 5.
#include "common.cuh"

// x [M, K], w [N, K], b [N] -> y [M, N]
template <typename T>
__global__ void __launch_bounds__(256)
gemm_registers(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ OPTIONAL b, T* __restrict__ y, int M, int N, int K) {
    constexpr int TILE = 64, SLICE = 16, EACH = 4;
    __shared__ float xs[SLICE][TILE + 4], ws[SLICE][TILE + 4];  // [k, row]
    const int t = threadIdx.x, tx = t % 16, ty = t / 16, n0 = blockIdx.x * TILE, m0 = blockIdx.y * TILE;
    float sum[EACH][EACH] = {}, run[EACH][EACH] = {};
    for (int k0 = 0; k0 < K; k0 += SLICE) {
#pragma unroll
        for (int i = t; i < TILE * SLICE; i += 256) {
            const int row = i / SLICE, k = i % SLICE;
            xs[k][row] = m0 + row < M && k0 + k < K ? to_float(x[(long long)(m0 + row) * K + k0 + k]) : 0.0f;
            ws[k][row] = n0 + row < N && k0 + k < K ? to_float(w[(long long)(n0 + row) * K + k0 + k]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < SLICE; k++) {
            float a[EACH], c[EACH];
#pragma unroll
            for (int i = 0; i < EACH; i++) a[i] = xs[k][ty * EACH + i], c[i] = ws[k][tx * EACH + i];
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) run[i][j] += a[i] * c[j];
        }
        __syncthreads();
        if (k0 / SLICE % 4 == 3 || k0 + SLICE >= K) {
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sum[i][j] += run[i][j], run[i][j] = 0.0f;
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            const int m = m0 + ty * EACH + i, n = n0 + tx * EACH + j;
            if (m < M && n < N) y[(long long)m * N + n] = from_float<T>(b ? sum[i][j] + to_float(b[n]) : sum[i][j]);
        }
}
