// Idea:           one warp for one token: lane l takes channels l, l + 32, …, so that a load of the warp is one run of memory.
// Differs:        from rung 1: lanes share a row instead of having one each; sums by shuffles.
// Work split:     grid rows / 4, block 128 = 4 warps; no shared memory, no barrier.
// Global traffic: 3 reads + 1 write of x; the second and third read hit the L1 cache: about 2 rows C sizeof(T) bytes.
// Limits:         T half or float; any C.
// Numerics:       as rung 1, the sums in 32 parts.
// Source:         Ba et al., arXiv:1607.06450; llm.c, layernorm_forward.cu.
#include "common.cuh"

// x, y [rows, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(128)
layer_norm_warp(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                int rows, int C, float eps) {
    const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (long long)row * C, y += (long long)row * C;
    const float shift = to_float(x[0]);
    float sum = 0.0f, squares = 0.0f;
    for (int c = lane; c < C; c += WARP) sum += to_float(x[c]) - shift;
    const float mean = warp_sum(sum) / C;
    for (int c = lane; c < C; c += WARP) {
        const float d = to_float(x[c]) - shift - mean;
        squares += d * d;
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / C + eps);
    for (int c = lane; c < C; c += WARP) y[c] = from_float<T>((to_float(x[c]) - shift - mean) * scale * to_float(w[c]) + to_float(b[c]));
}
