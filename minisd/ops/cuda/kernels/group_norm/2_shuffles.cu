// Idea:           lanes of a warp exchange numbers by shuffles; shared memory carries one number a warp.
// Differs:        from rung 1: two barriers a sum instead of ten, and mean and variance in one pass over x, by Welford's recurrence.
// Work split:     grid (G, B), block 256; each thread takes every 256th element of the group; 96 bytes of shared memory.
// Global traffic: 2 reads + 1 write of x, 3 B S C sizeof(T) bytes, still in runs of C/G elements.
// Limits:         T half or float; any S, C, G.
// Numerics:       Welford on x - s, s the group's first element; statistics of threads are merged by Chan's formula, in pairs.
// Source:         Welford, Technometrics 1962; Chan, Golub & LeVeque, 1979.
#include "statistics.cuh"

// x, y [B, S, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(256)
group_norm_shuffles(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                    int S, int C, int G, float eps, int use_silu) {
    __shared__ Moments shared[8];
    const int width = C / G, first = blockIdx.x * width, n = S * width;
    const long long image = (long long)blockIdx.y * S * C + first;  // x[b, 0, first]
    const float shift = to_float(x[image]);

    Moments mine = {0.0f, 0.0f, 0.0f};
    for (int i = threadIdx.x; i < n; i += 256)
        mine = with_value(mine, to_float(x[image + (long long)(i / width) * C + i % width]) - shift);
    mine = warp_moments(mine);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = mine;
    __syncthreads();
    Moments all = shared[0];
    for (int i = 1; i < 8; i++) all = merged(all, shared[i]);
    const float scale = 1.0f / sqrtf(all.squares / n + eps);

    for (int i = threadIdx.x; i < n; i += 256) {
        const int c = i % width;
        const long long at = image + (long long)(i / width) * C + c;
        const float v = (to_float(x[at]) - shift - all.mean) * scale * to_float(w[first + c]) + to_float(b[first + c]);
        y[at] = from_float<T>(use_silu ? silu(v) : v);
    }
}
