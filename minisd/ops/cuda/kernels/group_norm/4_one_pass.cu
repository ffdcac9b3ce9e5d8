// Idea:           read x once: keep the groups in shared memory between measuring and scaling.
// Differs:        from rung 3: one kernel; a block takes a bundle of neighbouring groups of one image, with all pixels.
// Work split:     grid (G / bundle, B), block 512; bundle · C/G channels are whole 16-byte vectors, so that loads stay wide;
//                 S · bundle · C/G elements and 16 Moments a group of shared memory.
// Global traffic: 1 read + 1 write of x, 2 B S C sizeof(T) bytes, in runs of bundle · C/G elements.
// Limits:         the bundle's pixels fit into 90 KiB; at most 8 groups a bundle. Few blocks: 16 for two images of 320 channels in half.
// Numerics:       Welford on x - s, s the group's first element; merged by Chan's formula.
// Source:         NVIDIA apex, group_norm_nhwc_fwd_one_pass (registers there, shared memory here); Welford, Technometrics 1962.
#include "statistics.cuh"

// x, y [B, S, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(512)
group_norm_one_pass(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                    int S, int C, int G, int bundle, float eps, int use_silu) {
    constexpr int V = Vector<T>::SIZE, WARPS = 16;
    const int width = C / G, stripe = bundle * width, vectors = stripe / V, first = blockIdx.x * stripe;
    const long long image = (long long)blockIdx.y * S * C + first;  // x[b, 0, first]
    DYNAMIC_SHARED(T, kept);                                                 // [S, stripe]
    Moments* of_warps = reinterpret_cast<Moments*>(kept + S * stripe);  // [bundle, WARPS], aligned because a stripe is whole vectors

    for (int i = threadIdx.x; i < S * vectors; i += 512)
        store_vector(kept + i * V, load_vector(x + image + (long long)(i / vectors) * C + i % vectors * V));
    __syncthreads();

    for (int g = 0; g < bundle; g++) {
        const float shift = to_float(kept[g * width]);
        Moments mine = {0.0f, 0.0f, 0.0f};
        for (int i = threadIdx.x; i < S * width; i += 512)
            mine = with_value(mine, to_float(kept[i / width * stripe + g * width + i % width]) - shift);
        mine = warp_moments(mine);
        if (threadIdx.x % WARP == 0) of_warps[g * WARPS + threadIdx.x / WARP] = mine;
    }
    __syncthreads();

    float mean[V], scale[V], low[V], shift[V];
    const int v0 = threadIdx.x % vectors;  // this thread's vector of the stripe: the same in every pixel it takes
    for (int i = 0; i < V; i++) {
        const int c = v0 * V + i, g = c / width;
        Moments all = of_warps[g * WARPS];
        for (int k = 1; k < WARPS; k++) all = merged(all, of_warps[g * WARPS + k]);
        shift[i] = to_float(kept[g * width]), mean[i] = all.mean;
        scale[i] = to_float(w[first + c]) / sqrtf(all.squares / all.count + eps), low[i] = to_float(b[first + c]);
    }
    const int rows = 512 / vectors;
    if (threadIdx.x >= rows * vectors) return;
    for (int p = threadIdx.x / vectors; p < S; p += rows) {
        Vector<T> v = load_vector(kept + p * stripe + v0 * V);
        for (int i = 0; i < V; i++) {
            const float n = (to_float(v.value[i]) - shift[i] - mean[i]) * scale[i] + low[i];
            v.value[i] = from_float<T>(use_silu ? silu(n) : n);
        }
        store_vector(y + image + (long long)p * C + v0 * V, v);
    }
}
