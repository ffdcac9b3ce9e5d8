// Idea:           a lane reads 16 bytes at once and keeps them: the row lives in the registers of its warp.
// Differs:        from rung 2: one read of x instead of two, an eighth (half) or a quarter (float) of the load instructions; with the whole row
//                 at hand the maximum comes first, and there is nothing to rescale.
// Work split:     grid rows / 4, block 128 = 4 warps; up to 10 vectors a lane in registers; no shared memory, no barrier.
// Global traffic: 1 read + 1 write, 2 rows n sizeof(T) bytes.
// Limits:         n a multiple of 8, at most 2560 (half); of 4, at most 1280 (float); every row has a finite number.
// Numerics:       float; the largest number of the row is subtracted before exp; the sum in 32 parts.
// Source:         the definition; the loads of layer_norm/3_vectors.cu.
#include "common.cuh"

constexpr int MAX_VECTORS = 10;

// x, y [rows, n]
template <typename T>
__global__ void __launch_bounds__(128, 4) softmax_vectors(const T* __restrict__ x, T* __restrict__ y, int rows, int n) {
    constexpr int V = Vector<T>::SIZE;
    const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP, vectors = n / V;
    if (row >= rows) return;
    x += (long long)row * n, y += (long long)row * n;
    Vector<T> kept[MAX_VECTORS];
    float largest = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < MAX_VECTORS; k++) {
        if (lane + k * WARP >= vectors) break;
        kept[k] = load_vector(x + (lane + k * WARP) * V);
        for (int i = 0; i < V; i++) largest = fmaxf(largest, to_float(kept[k].value[i]));
    }
    largest = warp_max(largest);
#pragma unroll
    for (int k = 0; k < MAX_VECTORS; k++) {
        if (lane + k * WARP < vectors)
            for (int i = 0; i < V; i++) sum += expf(to_float(kept[k].value[i]) - largest);
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int k = 0; k < MAX_VECTORS; k++) {
        if (lane + k * WARP >= vectors) break;
        for (int i = 0; i < V; i++) kept[k].value[i] = from_float<T>(expf(to_float(kept[k].value[i]) - largest) / sum);
        store_vector(y + (lane + k * WARP) * V, kept[k]);
    }
}
