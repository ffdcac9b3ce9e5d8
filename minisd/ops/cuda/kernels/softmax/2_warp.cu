// Idea:           one warp for one row; maximum and sum in one pass: when a larger number comes, the sum so far is rescaled.
// Differs:        from rung 1: a load of the warp is one run of memory; 2 reads of x instead of 3.
// Work split:     grid rows / 4, block 128 = 4 warps; no shared memory, no barrier.
// Global traffic: 2 reads + 1 write, 3 rows n sizeof(T) bytes; the second read hits the cache for rows up to some thousands.
// Limits:         T half or float; any n; every row has a finite number.
// Numerics:       float; 32 partial sums with a maximum each, brought to a common maximum at the end.
// Source:         Milakov & Gimelshein, arXiv:1805.02867.
#include "common.cuh"

// x, y [rows, n]
template <typename T>
__global__ void __launch_bounds__(128) softmax_warp(const T* __restrict__ x, T* __restrict__ y, int rows, int n) {
    const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    x += (long long)row * n, y += (long long)row * n;
    float mine = -INFINITY, sum = 0.0f;
    for (int i = lane; i < n; i += WARP) {
        const float v = to_float(x[i]);
        if (v > mine) sum = sum * expf(mine - v) + 1.0f, mine = v;
        else if (v > -INFINITY) sum += expf(v - mine);
    }
    const float largest = warp_max(mine);
    sum = warp_sum(mine == -INFINITY ? 0.0f : sum * expf(mine - largest));
    for (int i = lane; i < n; i += WARP) y[i] = from_float<T>(expf(to_float(x[i]) - largest) / sum);
}
