// Idea:           one thread for one number of y: a dot product of a row of x and a row of w.
// Differs:        the lowest rung.
// Work split:     grid (N / 16, M / 16), block (16, 16); no shared memory.
// Global traffic: 2 M N K sizeof(T) bytes asked for; caches save some of it.
// Limits:         T half or float; any M, N, K.
// Numerics:       float sums in runs of 64, the runs added: the error grows with K / 64 instead of K.
// Source:         the definition.
#include "common.cuh"

// x [M, K], w [N, K], b [N] -> y [M, N]
template <typename T>
__global__ void __launch_bounds__(256)
gemm_naive(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ OPTIONAL b, T* __restrict__ y, int M, int N, int K) {
    const int n = blockIdx.x * 16 + threadIdx.x, m = blockIdx.y * 16 + threadIdx.y;
    if (m >= M || n >= N) return;
    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += 64) {
        float run = 0.0f;
        for (int k = k0; k < min(K, k0 + 64); k++) run += to_float(x[(long long)m * K + k]) * to_float(w[(long long)n * K + k]);
        sum += run;
    }
    y[(long long)m * N + n] = from_float<T>(b ? sum + to_float(b[n]) : sum);
}
