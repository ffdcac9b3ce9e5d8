// Idea:           read x once: keep the groups in shared memory between measuring and scaling.
// Differs:        from rung 3: one kernel; a block takes a bundle of neighbouring groups of one image, with all pixels. With all of them at hand
//                 the mean comes first and the squares second: no division a number, as Welford's recurrence has it.
// Work split:     grid (G / bundle, B), block 512; bundle · C/G channels are whole 16-byte vectors, so that every access is 16 bytes wide;
//                 thread (r, v) takes vector v of pixels r, r + R, …; in shared memory S · bundle · C/G elements and R rows of partial sums.
// Global traffic: 1 read + 1 write of x, 2 B S C sizeof(T) bytes, in runs of bundle · C/G elements.
// Limits:         at most 20480 elements and 8 groups a bundle. Few blocks: 64 for two images of 1280 channels.
// Numerics:       sums of x - s, s the group's first element, then of the squares about the mean; float, in R rows of C/G parts. SiLU as rung 3.
// Source:         NVIDIA apex, group_norm_nhwc_fwd_one_pass (registers there, shared memory here).
#include "normalize.cuh"

// x, y [B, S, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(512)
group_norm_one_pass(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                    int S, int C, int G, int bundle, float eps, int use_silu) {
    constexpr int V = Vector<T>::SIZE, WARPS = 16;
    const int width = C / G, stripe = bundle * width, vectors = stripe / V, rows = 512 / vectors, first = blockIdx.x * stripe;
    const int v0 = threadIdx.x % vectors * V, r = threadIdx.x / vectors, last = r < rows ? S : 0;  // the threads behind the last row rest
    const int pitch = stripe + 1;  // lanes that read one column of partial sums hit different banks
    const long long image = (long long)blockIdx.y * S * C + first;  // x[b, 0, first]
    DYNAMIC_SHARED(T, kept);                                             // [S, stripe]
    float* parts = reinterpret_cast<float*>(kept + S * stripe);          // [rows, pitch], aligned because a stripe is whole vectors
    float* of_groups = parts + rows * pitch;                             // [bundle]

    // The sum over each group of what all threads have for their channels.
    const auto total = [&](const float* mine) {
        if (r < rows)
            for (int i = 0; i < V; i++) parts[r * pitch + v0 + i] = mine[i];
        __syncthreads();
        for (int g = threadIdx.x / WARP; g < bundle; g += WARPS) {
            float sum = 0.0f;
            for (int row = threadIdx.x % WARP; row < rows; row += WARP)
                for (int i = 0; i < width; i++) sum += parts[row * pitch + g * width + i];
            sum = warp_sum(sum);
            if (threadIdx.x % WARP == 0) of_groups[g] = sum;
        }
        __syncthreads();
    };

    float shift[V], mean[V], scale[V], low[V], sum[V] = {}, squares[V] = {};
    for (int i = 0; i < V; i++) shift[i] = to_float(x[image + (v0 + i) / width * width]);
#pragma unroll 4
    for (int p = r; p < last; p += rows) {
        const Vector<T> v = load_vector(x + image + (long long)p * C + v0);
        store_vector(kept + p * stripe + v0, v);
        for (int i = 0; i < V; i++) sum[i] += to_float(v.value[i]) - shift[i];
    }
    total(sum);
    const float count = (float)S * width;
    for (int i = 0; i < V; i++) mean[i] = of_groups[(v0 + i) / width] / count;
    for (int p = r; p < last; p += rows) {
        const Vector<T> v = load_vector(kept + p * stripe + v0);
        for (int i = 0; i < V; i++) {
            const float d = to_float(v.value[i]) - shift[i] - mean[i];
            squares[i] += d * d;
        }
    }
    total(squares);
    for (int i = 0; i < V; i++) {
        const int c = v0 + i;
        scale[i] = to_float(w[first + c]) / sqrtf(of_groups[c / width] / count + eps), low[i] = to_float(b[first + c]);
    }
    for (int p = r; p < last; p += rows) {
        Vector<T> v = load_vector(kept + p * stripe + v0);
        normalize(v, shift, mean, scale, low, use_silu);
        store_vector(y + image + (long long)p * C + v0, v);
    }
}
