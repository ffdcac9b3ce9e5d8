// Idea:           one thread for one token: mean, variance, scaling, in three loops over its channels.
// Differs:        the lowest rung.
// Work split:     grid rows / 128, block 128; no shared memory.
// Global traffic: 3 reads + 1 write of x, 4 rows C sizeof(T) bytes; the lanes of a warp read addresses that lie C elements apart, so
//                 that each load of 32 numbers touches 32 sectors.
// Limits:         T half or float; any C.
// Numerics:       float sums of x - x[0], which keeps the digits where the mean is large, then of squares.
// Source:         Ba et al., arXiv:1607.06450.
#include "common.cuh"

// x, y [rows, C]; w, b [C]
template <typename T>
__global__ void __launch_bounds__(128)
layer_norm_naive(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
                 int rows, int C, float eps) {
    const int row = blockIdx.x * 128 + threadIdx.x;
    if (row >= rows) return;
    x += (long long)row * C, y += (long long)row * C;
    const float shift = to_float(x[0]);
    float sum = 0.0f, squares = 0.0f;
    for (int c = 0; c < C; c++) sum += to_float(x[c]) - shift;
    const float mean = sum / C;
    for (int c = 0; c < C; c++) {
        const float d = to_float(x[c]) - shift - mean;
        squares += d * d;
    }
    const float scale = 1.0f / sqrtf(squares / C + eps);
    for (int c = 0; c < C; c++) y[c] = from_float<T>((to_float(x[c]) - shift - mean) * scale * to_float(w[c]) + to_float(b[c]));
}
