// Idea:           a lane reads 16 bytes at once and keeps them: the row lives in the registers of its warp.
// Differs:        from rung 2: one read of x instead of three, an eighth (half) or a quarter (float) of the load instructions.
// Work split:     grid rows / 4, block 128 = 4 warps; up to 10 vectors a lane in registers.
// Global traffic: 1 read + 1 write of x, 2 rows C sizeof(T) bytes.
// Limits:         C a multiple of 8, at most 2560 (half); of 4, at most 1280 (float).
// Numerics:       as rung 2.
// Source:         Ba et al., arXiv:1607.06450; llm.c, layernorm_forward.cu, kernel 5.
#include "common.cuh"

constexpr int MAX_VECTORS = 10;

// x, y [rows, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(128)
layer_norm_vectors(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                   int rows, int C, float eps) {
    constexpr int V = Vector<T>::SIZE;
    const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP, vectors = C / V;
    if (row >= rows) return;
    x += (long long)row * C, y += (long long)row * C;
    const float shift = to_float(x[0]);
    Vector<T> kept[MAX_VECTORS];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int k = 0; k < MAX_VECTORS; k++) {
        if (lane + k * WARP >= vectors) break;
        kept[k] = load_vector(x + (lane + k * WARP) * V);
        for (int i = 0; i < V; i++) sum += to_float(kept[k].value[i]) - shift;
    }
    const float mean = warp_sum(sum) / C;
#pragma unroll
    for (int k = 0; k < MAX_VECTORS; k++) {
        if (lane + k * WARP >= vectors) break;
        for (int i = 0; i < V; i++) {
            const float d = to_float(kept[k].value[i]) - shift - mean;
            squares += d * d;
        }
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / C + eps);
#pragma unroll
    for (int k = 0; k < MAX_VECTORS; k++) {
        if (lane + k * WARP >= vectors) break;
        const int c = (lane + k * WARP) * V;
        const Vector<T> scales = load_vector(w + c), lows = load_vector(b + c);
        for (int i = 0; i < V; i++) {
            const float n = (to_float(kept[k].value[i]) - shift - mean) * scale;
            kept[k].value[i] = from_float<T>(n * to_float(scales.value[i]) + to_float(lows.value[i]));
        }
        store_vector(y + c, kept[k]);
    }
}
