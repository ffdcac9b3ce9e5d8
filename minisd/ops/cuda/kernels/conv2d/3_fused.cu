// Idea:           what follows a convolution in a resnet is added while its sums are still in registers.
// Differs:        from rung 2: the time embedding [B, O] and the skip [B, H', W', O] join the bias; tiles of 128 x 128, and of
//                 128 x 160, which divides every width of the UNet.
// Work split:     grid (M / BM, O / BN), block 256 for the large tiles; 4 (40 BM + 32 (BN + 8)) halves of shared memory: 82 KiB for
//                 128 x 160.
// Global traffic: 2 M K O (1 / BM + 1 / BN) bytes, + 2 M O for the skip; saved are two passes over y, 8 M O bytes.
// Limits:         as rung 2; large tiles where C and O are multiples of 8.
// Numerics:       bias, embedding and skip are added in float; one rounding instead of three.
// Source:         cuDNN and CUTLASS epilogues; diffusers ResnetBlock2D for what is added.
#include "implicit_gemm.cuh"

// x [B, H, W, C], w [KH, KW, C, O], b [O], embedding [B, O], skip [B, HO, WO, O] -> y [B, HO, WO, O]
template <int BM, int BN, int WM, int WN, bool ALIGNED>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32)
conv2d_fused(const half* __restrict__ x, const half* __restrict__ w, const half* __restrict__ OPTIONAL b,
             const half* __restrict__ OPTIONAL embedding, const half* __restrict__ OPTIONAL skip, half* __restrict__ y,
             int B, int H, int W, int C, int O, int KH, int KW, int stride, int top, int left, int HO, int WO) {
    DYNAMIC_SHARED(half, shared);
    const ConvShape s = {B, H, W, C, O, KH, KW, stride, top, left, HO, WO};
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN;
    MmaTile<BM, BN, WM, WN, true> tile;
    convolve<ALIGNED>(tile, shared, w, s, m0, n0, [&](int image, int h, int column) { return x + (((long long)image * H + h) * W + column) * C; });

    tile.each_pair([&](int row, int column, float v0, float v1) {
        const int m = m0 + row, n = n0 + column;
        if (m >= B * HO * WO || n >= O) return;
        const auto add = [&](const half* p) {  // p[n], p[n + 1]
            v0 += to_float(p[n]);
            if (n + 1 < O) v1 += to_float(p[n + 1]);
        };
        if (b) add(b);
        if (embedding) add(embedding + (long long)(m / (HO * WO)) * O);
        if (skip) add(skip + (long long)m * O);
        store_pair(y + (long long)m * O, n, O, v0, v1);
    });
}
