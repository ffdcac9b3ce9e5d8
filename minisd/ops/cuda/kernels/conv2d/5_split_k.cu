// Idea:           where the tiles of y are fewer than the multiprocessors, the sum over K is cut: every part of a tile is a block.
// Differs:        from rung 3: blockIdx.z counts the parts; a block stores its sums in float32, and a second kernel adds the parts, in
//                 order, so that the result is the same in every run, and then bias, embedding and skip. SCALE 2 is rung 4 cut so.
// Work split:     grid (M / BM, O / BN, parts), block and shared memory as rung 3; then grid M O / 2048, block 256, 8 numbers a thread.
// Global traffic: as rung 3, + 8 parts M O bytes for the sums, which the L2 cache mostly holds; saved is time: 16 x 16 pixels of two
//                 images with 1280 channels are 32 tiles, with 4 parts 128 blocks.
// Limits:         half; C and O multiples of 8.
// Numerics:       float sums of each part, the parts added in float; bias, embedding, skip in float; one rounding at the end.
// Source:         CUTLASS, "Efficient GEMM in CUDA", parallelized reductions (split-K); tiles.py chooses the parts.
#include "implicit_gemm.cuh"

// x [B, H, W, C], w [KH, KW, C, O] -> sums [parts, B HO WO, O], each over `slices` slices of K. The image is doubled first if SCALE = 2.
template <int BM, int BN, int WM, int WN, int SCALE>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32)
conv2d_parts(const half* __restrict__ x, const half* __restrict__ w, float* __restrict__ sums, int B, int H, int W, int C, int O,
             int KH, int KW, int stride, int top, int left, int HO, int WO, int slices) {
    DYNAMIC_SHARED(half, shared);
    const ConvShape s = {B, SCALE == 1 ? H : HO, SCALE == 1 ? W : WO, C, O, KH, KW, stride, top, left, HO, WO};
    const int m0 = blockIdx.x * BM, n0 = blockIdx.y * BN, first = blockIdx.z * slices, M = B * HO * WO;
    MmaTile<BM, BN, WM, WN, true> tile;
    convolve<true>(tile, shared, w, s, m0, n0, first, min(first + slices, s.slices<tile.BK>()),
                   [&](int image, int h, int column) { return x + (((long long)image * H + h / SCALE) * W + column / SCALE) * C; });

    tile.each_row([&](int row, auto pairs) {
        const int m = m0 + row;
        if (m >= M) return;
        float* out = sums + ((long long)blockIdx.z * M + m) * O;
        pairs([&](int column, float v0, float v1) {
            const int n = n0 + column;
            if (n < O) *reinterpret_cast<float2*>(out + n) = make_float2(v0, v1);
        });
    });
}

// sums [parts, B S, O], b [O], embedding [B, O], skip [B, S, O] -> y [B, S, O]. T = half: one part, a product by cuBLAS.
template <typename T>
__global__ void __launch_bounds__(256)
conv2d_total(const T* __restrict__ sums, const half* __restrict__ OPTIONAL b, const half* __restrict__ OPTIONAL embedding,
             const half* __restrict__ OPTIONAL skip, half* __restrict__ y, int parts, int B, int S, int O) {
    const long long size = (long long)B * S * O, at = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
    if (at >= size) return;
    const int n = at % O;
    float total[8] = {};
    for (int part = 0; part < parts; part++)
#pragma unroll
        for (int i = 0; i < 8; i += Vector<T>::SIZE) {
            const Vector<T> v = load_vector(sums + part * size + at + i);
#pragma unroll
            for (int j = 0; j < Vector<T>::SIZE; j++) total[i + j] += to_float(v.value[j]);
        }
    const auto add = [&](const half* from) {
        const Vector<half> v = load_vector(from);
#pragma unroll
        for (int i = 0; i < 8; i++) total[i] += to_float(v.value[i]);
    };
    if (b) add(b + n);
    if (embedding) add(embedding + at / ((long long)S * O) * O + n);
    if (skip) add(skip + at);
    Vector<half> v;
#pragma unroll
    for (int i = 0; i < 8; i++) v.value[i] = from_float<half>(total[i]);
    store_vector(y + at, v);
}
