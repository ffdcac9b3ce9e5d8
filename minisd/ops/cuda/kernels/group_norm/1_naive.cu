// Idea:           one block for one group of one image: two passes for mean and variance, a third to write; sums meet in shared memory.
// Differs:        the lowest rung.
// Work split:     grid (G, B), block 256; each thread takes every 256th element of the group, pixel after pixel; 1 KiB of shared memory.
// Global traffic: 3 reads + 1 write of x, 4 B S C sizeof(T) bytes. A group is a stripe of C/G channels in each pixel: runs of C/G elements.
// Limits:         T half or float; any S, C, G.
// Numerics:       float sums of x - s, s the group's first element, then of squares: the mean may be 1000 deviations away.
// Source:         Wu & He, arXiv:1803.08494; tree reduction: Harris, "Optimizing Parallel Reduction in CUDA", 2007.
#include "common.cuh"

// The sum of one number of each of the 256 threads.
__device__ __forceinline__ float block_sum(float x, float* shared) {
    const int t = threadIdx.x;
    __syncthreads();
    shared[t] = x;
    __syncthreads();
    for (int step = 128; step > 0; step /= 2) {
        if (t < step) shared[t] += shared[t + step];
        __syncthreads();
    }
    return shared[0];
}

// x, y [B, S, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(256, 4)
group_norm_naive(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                 int S, int C, int G, float eps, int use_silu) {
    __shared__ float shared[256];
    const int width = C / G, first = blockIdx.x * width, n = S * width;
    const long long image = (long long)blockIdx.y * S * C + first;  // x[b, 0, first]
    const float shift = to_float(x[image]);

    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 256) sum += to_float(x[image + (long long)(i / width) * C + i % width]) - shift;
    const float mean = block_sum(sum, shared) / n;

    float squares = 0.0f;
    for (int i = threadIdx.x; i < n; i += 256) {
        const float d = to_float(x[image + (long long)(i / width) * C + i % width]) - shift - mean;
        squares += d * d;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, shared) / n + eps);

    for (int i = threadIdx.x; i < n; i += 256) {
        const int c = i % width;
        const long long at = image + (long long)(i / width) * C + c;
        const float v = (to_float(x[at]) - shift - mean) * scale * to_float(w[first + c]) + to_float(b[first + c]);
        y[at] = from_float<T>(use_silu ? silu(v) : v);
    }
}
