// Idea:           what follows a convolution in a resnet is added while its sums are still in registers.
// Differs:        from rung 2: the time embedding [B, O] and the skip [B, H', W', O] join the bias; tiles of 128 x 128, and of
//                 128 x 160, which divides every width of the UNet.
// Work split:     grid (M / BM, O / BN), block 256 for the large tiles; 4 (40 BM + 32 (BN + 8)) halves of shared memory: 82 KiB for
//                 128 x 160.
// Global traffic: 2 M K O (1 / BM + 1 / BN) bytes, + 2 M O for the skip; saved are a pass for the embedding, 4 M O, and one
//                 for the skip, 6 M O.
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
    convolve<ALIGNED>(tile, shared, w, s, m0, n0, 0, s.slices<tile.BK>(),
                      [&](int image, int h, int column) { return x + (((long long)image * H + h) * W + column) * C; });

    tile.each_row([&](int row, auto pairs) {
        const int m = m0 + row;
        if (m >= B * HO * WO) return;
        const half* time = embedding ? embedding + (long long)(m / (HO * WO)) * O : nullptr;
        const half* before = skip ? skip + (long long)m * O : nullptr;
        half* out = y + (long long)m * O;
        pairs([&](int column, float v0, float v1) {
            const int n = n0 + column;
            if (n >= O) return;
            if (b) add_pair<ALIGNED>(b, n, O, v0, v1);
            if (time) add_pair<ALIGNED>(time, n, O, v0, v1);
            if (before) add_pair<ALIGNED>(before, n, O, v0, v1);
            store_pair<ALIGNED>(out, n, O, v0, v1);
        });
    });
}
