// Idea:           one thread for one number of y: the sum over the taps and channels, as the formula has it.
// Differs:        the lowest rung.
// Work split:     grid (B H' W' / 8, O / 32), block (32, 8): a warp makes 32 neighbouring channels of one pixel; no shared memory.
// Global traffic: B H' W' O KH KW C 2 sizeof(T) bytes asked for; a warp reads x as a broadcast and w in runs of 32.
// Limits:         T half or float; any shape, stride, padding.
// Numerics:       float sums of one tap's channels in runs of 64, these added, then the taps.
// Source:         the definition; torch F.conv2d.
#include "common.cuh"

// x [B, H, W, C], w [KH, KW, C, O], b [O] -> y [B, HO, WO, O]
template <typename T>
__global__ void __launch_bounds__(256, 4)
conv2d_direct(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ OPTIONAL b, T* __restrict__ y,
              int B, int H, int W, int C, int O, int KH, int KW, int stride, int top, int left, int HO, int WO) {
    const int m = blockIdx.x * 8 + threadIdx.y, o = blockIdx.y * 32 + threadIdx.x;
    if (m >= B * HO * WO || o >= O) return;
    const int image = m / (HO * WO), h0 = m / WO % HO * stride - top, w0 = m % WO * stride - left;
    float sum = 0.0f;
    for (int i = 0; i < KH; i++)
        for (int j = 0; j < KW; j++) {
            if (h0 + i < 0 || h0 + i >= H || w0 + j < 0 || w0 + j >= W) continue;
            const T* from = x + (((long long)image * H + h0 + i) * W + w0 + j) * C;  // x[image, h0 + i, w0 + j]
            const T* taps = w + (long long)(i * KW + j) * C * O + o;                 // w[i, j, 0, o]
            float tap = 0.0f;
            for (int c0 = 0; c0 < C; c0 += 64) {
                float run = 0.0f;
                for (int c = c0; c < min(C, c0 + 64); c++) run += to_float(from[c]) * to_float(taps[(long long)c * O]);
                tap += run;
            }
            sum += tap;
        }
    y[(long long)m * O + o] = from_float<T>(b ? sum + to_float(b[o]) : sum);
}
