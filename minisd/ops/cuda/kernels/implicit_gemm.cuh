// A convolution as the matrix product y [M, O] = A [M, K] W [K, O] whose left operand is never stored: M counts the output pixels
// (b, h, w), K the numbers (i, j, c) under the kernel, and A[m, k] = x[b, stride h + i - top, stride w + j - left, c] is fetched when it
// is needed. W is [KH, KW, C, O], as the checkpoint's [O, C, KH, KW] lies in memory.
#include "mma_tile.cuh"

struct ConvShape {
    int B, H, W, C, O, KH, KW, stride, top, left, HO, WO;  // H, W: of the image that the kernel moves over

    // K in slices of BK: the taps, and in each the blocks of channels.
    template <int BK> __device__ __forceinline__ int slices() const { return KH * KW * ((C + BK - 1) / BK); }
};

// 8 halves from p[0 … valid - 1] into shared memory, zeros behind them: what cp.async cannot do at any address.
__device__ __forceinline__ void copy_ragged(half* shared, const half* p, int valid) {
    Vector<half> v;
#pragma unroll
    for (int i = 0; i < 8; i++) v.value[i] = i < valid ? p[i] : __float2half_rn(0.0f);
    store_vector(shared, v);
}

// tile += A W for the tile's pixels from m0 and channels from n0, over the slices first … last - 1 of K. pixel(b, h, w) is where the
// channels of that pixel begin. ALIGNED: C and O are multiples of 8, every load is 16 bytes.
template <bool ALIGNED, class Tile, class Pixel>
__device__ __forceinline__ void convolve(Tile& tile, half* shared, const half* weights, const ConvShape& s, int m0, int n0, int first, int last,
                                         Pixel pixel) {
    constexpr int CHUNKS = Tile::A_CHUNKS / Tile::THREADS;  // of A for each thread
    static_assert(Tile::A_CHUNKS % Tile::THREADS == 0, "every thread loads the same number of chunks");
    const int t = threadIdx.x, M = s.B * s.HO * s.WO, blocks = (s.C + Tile::BK - 1) / Tile::BK;
    int image[CHUNKS], top[CHUNKS], left[CHUNKS];  // of the window of each chunk's pixel
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const int m = m0 + (t + i * Tile::THREADS) / (Tile::BK / 8), of_image = m % (s.HO * s.WO);
        image[i] = m < M ? m / (s.HO * s.WO) : -1;
        top[i] = of_image / s.WO * s.stride - s.top, left[i] = of_image % s.WO * s.stride - s.left;
    }
    // Of the slice that is loaded next: the kernel's tap and its block of 32 channels.
    int row = first / blocks / s.KW, column = first / blocks % s.KW, block = first % blocks;

    tile.run(shared, last - first, [&](int, half* stage) {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            const int chunk = t + i * Tile::THREADS, c = block * Tile::BK + chunk % (Tile::BK / 8) * 8, h = top[i] + row, w = left[i] + column;
            const bool inside = image[i] >= 0 && h >= 0 && h < s.H && w >= 0 && w < s.W && c < s.C;
            const half* from = inside ? pixel(image[i], h, w) + c : weights;  // anything that may be named
            if (ALIGNED || s.C % 8 == 0) copy_async_16(Tile::a_chunk(stage, chunk), from, inside);
            else copy_ragged(Tile::a_chunk(stage, chunk), from, inside ? s.C - c : 0);
        }
#pragma unroll
        for (int chunk = t; chunk < Tile::B_CHUNKS; chunk += Tile::THREADS) {
            const int c = block * Tile::BK + chunk / (Tile::BN / 8), n = n0 + chunk % (Tile::BN / 8) * 8;
            const bool inside = c < s.C && n < s.O;
            const half* from = inside ? weights + ((long long)(row * s.KW + column) * s.C + c) * s.O + n : weights;
            if (ALIGNED || s.O % 8 == 0) copy_async_16(Tile::b_chunk(stage, chunk), from, inside);
            else copy_ragged(Tile::b_chunk(stage, chunk), from, inside ? s.O - n : 0);
        }
        if (++block == blocks) {
            block = 0;
            if (++column == s.KW) column = 0, row++;
        }
    });
}
