// Idea:           in [B, S, C] a pixel is one run of memory: let neighbouring threads take neighbouring channels, of all groups at once.
// Differs:        from rung 2: a block takes a chunk of pixels with all their channels, 16 bytes a load; the statistics of the chunks go
//                 through global memory to a second kernel, which scales.
// Work split:     statistics: grid (chunks, B), block (C / V, R), V = 16 bytes of T; thread (c, r) takes pixels r, r + R, … of the chunk, in
//                 8 R C bytes of shared memory. scaling: grid (chunks, B), the same block, 12 G bytes.
// Global traffic: 2 reads + 1 write of x, 3 B S C sizeof(T) bytes, all in full sectors. The second read hits the L2 cache where x fits into it.
//                 Every block of the second kernel reads the statistics of all chunks of its image: 12 B G chunks^2 bytes from the L2 cache.
// Limits:         C a multiple of 8, at most 8192 (half); of 4, at most 4096 (float); any G.
// Numerics:       Welford for each channel on x - s, s = x[b, 0, first channel of the group]; merged by Chan's formula.
//                 SiLU of halves by approximate instructions, to 3 ulp of a float.
// Source:         NVIDIA apex, group_norm_nhwc; Chan, Golub & LeVeque, 1979.
#include "normalize.cuh"
#include "statistics.cuh"

// x [B, S, C] -> parts [B, G, chunks, 3]: count, mean and sum of squares of each group of each chunk, about the group's shift.
template <typename T>
__global__ void __launch_bounds__(1024, 1) group_norm_statistics(const T* __restrict__ x, float* __restrict__ parts, int S, int C, int G, int chunk) {
    constexpr int V = Vector<T>::SIZE;
    DYNAMIC_SHARED(float, shared);  // means [R, C], then squares [R, C]
    const int rows = blockDim.y, c0 = threadIdx.x * V, width = C / G, r = threadIdx.y;
    const int begin = blockIdx.x * chunk, end = min(S, begin + chunk);
    const T* image = x + (long long)blockIdx.y * S * C;

    float shift[V], mean[V], squares[V], count = 0.0f;
    for (int i = 0; i < V; i++) shift[i] = to_float(image[(c0 + i) / width * width]), mean[i] = squares[i] = 0.0f;
#pragma unroll 4
    for (int p = begin + r; p < end; p += rows) {
        const Vector<T> v = load_vector(image + (long long)p * C + c0);  // x[b, p, c0 …]
        count += 1.0f;
        const float inverse = 1.0f / count;
        for (int i = 0; i < V; i++) {
            const float value = to_float(v.value[i]) - shift[i], d = value - mean[i];
            mean[i] += d * inverse;
            squares[i] += d * (value - mean[i]);
        }
    }
    for (int i = 0; i < V; i++) shared[r * C + c0 + i] = mean[i], shared[(rows + r) * C + c0 + i] = squares[i];
    __syncthreads();

    // One warp a group: its R rows of `width` channels, 32 at a time.
    const int t = r * blockDim.x + threadIdx.x, warps = blockDim.x * rows / WARP, lane = t % WARP;
    if (t / WARP >= warps) return;  // the last warp is not whole
    for (int g = t / WARP; g < G; g += warps) {
        Moments mine = {0.0f, 0.0f, 0.0f};
        for (int i = lane; i < rows * width; i += WARP) {
            const int row = i / width, c = g * width + i % width, pixels = end - begin - row;
            if (pixels <= 0) continue;
            mine = merged(mine, {(float)((pixels + rows - 1) / rows), shared[row * C + c], shared[(rows + row) * C + c]});
        }
        mine = warp_moments(mine);
        float* out = parts + (((long long)blockIdx.y * G + g) * gridDim.x + blockIdx.x) * 3;
        if (lane == 0) out[0] = mine.count, out[1] = mine.mean, out[2] = mine.squares;
    }
}

// x [B, S, C], parts [B, G, chunks, 3] -> y [B, S, C]
template <typename T>
__global__ void __launch_bounds__(1024) group_norm_apply(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b,
                                                         const float* __restrict__ parts, T* __restrict__ y, int S, int C, int G, int chunk,
                                                         float eps, int use_silu) {
    constexpr int V = Vector<T>::SIZE;
    DYNAMIC_SHARED(float, shared);  // shift [G], mean [G], scale [G]
    const int rows = blockDim.y, c0 = threadIdx.x * V, width = C / G, r = threadIdx.y;
    const long long image = (long long)blockIdx.y * S * C;

    const int t = r * blockDim.x + threadIdx.x, warps = blockDim.x * rows / WARP, lane = t % WARP;  // one warp a group
    for (int g = t / WARP; g < G && t / WARP < warps; g += warps) {                                 // the last warp may not be whole
        Moments all = {0.0f, 0.0f, 0.0f};
        for (int k = lane; k < gridDim.x; k += WARP) {
            const float* part = parts + (((long long)blockIdx.y * G + g) * gridDim.x + k) * 3;
            all = merged(all, {part[0], part[1], part[2]});
        }
        all = warp_moments(all);
        if (lane > 0) continue;
        shared[g] = to_float(x[image + g * width]), shared[G + g] = all.mean, shared[2 * G + g] = 1.0f / sqrtf(all.squares / all.count + eps);
    }
    __syncthreads();

    float shift[V], mean[V], scale[V], low[V];
    for (int i = 0; i < V; i++) {
        const int c = c0 + i, g = c / width;
        shift[i] = shared[g], mean[i] = shared[G + g], scale[i] = shared[2 * G + g] * to_float(w[c]), low[i] = to_float(b[c]);
    }
#pragma unroll 4
    for (int p = blockIdx.x * chunk + r; p < min(S, (blockIdx.x + 1) * chunk); p += rows) {
        Vector<T> v = load_vector(x + image + (long long)p * C + c0);
        normalize(v, shift, mean, scale, low, use_silu);
        store_vector(y + image + (long long)p * C + c0, v);
    }
}
