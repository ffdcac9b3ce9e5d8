// Idea:           the convolution is a matrix product; its left operand, nine times the image, is gathered by cp.async and never stored.
// Differs:        from rung 1: tensor cores on tiles of 64 pixels and 64 channels; padding arrives as zeros that nobody reads.
// Work split:     grid (B H' W' / 64, O / 64), block 128 = 4 warps of 32 x 32; 4 (64 · 40 + 32 · 72) halves of shared memory, 38 KiB.
// Global traffic: M K O / 64 · 4 bytes with M = B H' W' pixels, K = KH KW C: x is asked for KH KW O / 64 times, mostly from the
//                 L2 cache; y written once.
// Limits:         half; any shape, stride, padding. C or O no multiple of 8: single loads instead of cp.async.
// Numerics:       products of halves exact, sums in float in the order of the tensor core; one rounding at the end.
// Source:         Chetlur et al., arXiv:1410.0759 (cuDNN); CUTLASS, implicit GEMM convolution.
#include "implicit_gemm.cuh"

// x [B, H, W, C], w [KH, KW, C, O], b [O] -> y [B, HO, WO, O]
template <int BM, int BN, int WM, int WN, bool ALIGNED>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32)
conv2d_implicit(const half* __restrict__ x, const half* __restrict__ w, const half* __restrict__ OPTIONAL b, half* __restrict__ y,
                int B, int H, int W, int C, int O, int KH, int KW, int stride, int top, int left, int HO, int WO) {
    DYNAMIC_SHARED(half, shared);
    const ConvShape s = {B, H, W, C, O, KH, KW, stride, top, left, HO, WO};
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    MmaTile<BM, BN, WM, WN, true> tile;
    convolve<ALIGNED>(tile, shared, w, s, m0, n0, 0, s.slices<tile.BK>(),
                      [&](int image, int h, int column) { return x + (((long long)image * H + h) * W + column) * C; });

    tile.each_row([&](int row, auto pairs) {
        const int m = m0 + row;
        if (m >= B * HO * WO) return;
        half* out = y + (long long)m * O;
        pairs([&](int column, float v0, float v1) {
            const int n = n0 + column;
            if (n >= O) return;
            if (b) add_pair<ALIGNED>(b, n, O, v0, v1);
            store_pair<ALIGNED>(out, n, O, v0, v1);
        });
    });
}
