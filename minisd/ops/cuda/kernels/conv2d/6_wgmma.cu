// Idea:           the copy engine gathers the patches: a box of pixels, moved by one tap of the kernel, is one load, and what it reads
//                 beyond the image arrives as the zeros of the padding.
// Differs:        from rung 3: TMA and wgmma (gemm/6_wgmma.cu) in place of cp.async and mma: no addresses, no tests for padding; a tile's
//                 128 pixels are a box of images, rows and columns, not a run of the flattened image. Where there are few tiles, `parts`
//                 blocks share the K of each, and a second kernel adds their sums. A doubled image is four images, the pixels of even and
//                 odd rows and columns: in each of them a tap is a box of the small image again.
// Work split:     grid (boxes of pixels, O / BN, parts), four times the boxes for a doubled image, block 288 = two warpgroups
//                 of 64 pixels and a warp that loads; ring of slices of 64 channels of one tap, each 128 (128 + BN) bytes: BN = 160 has
//                 four, 145 KiB with 1 KiB to align; BN = 128 three, 97 KiB, two blocks a multiprocessor.
// Global traffic: 18 M C O (1 / (128 CLUSTER) + 1 / BN) bytes, M pixels, + 2 M O, and 2 M O for the skip; with parts, + 8 parts M O.
// Limits:         half; compute capability 9.0 only; 3 x 3, stride 1, padding 1; C a multiple of 8, O of 32; any image and batch.
// Numerics:       as rung 3: sums in float in the order of the tensor core, then by parts; bias, embedding and skip added in float; one
//                 rounding.
// Source:         PTX ISA, cp.async.bulk.tensor (tiled mode, zero fill), wgmma.mma_async with B transposed; CUTLASS's sm_90 convolutions.
#include "wgmma_tile.cuh"

// x [B, H, W, C] in boxes [images, rows, columns, 64] of 128 pixels, w [9, O / 32, C, 32] in boxes [1, BN / 32, 64 / CLUSTER, 32],
// b [O], embedding [B, O], skip [B, H', W', O] -> y [B, H', W', O], H' = scale H, W' = scale W, scale 1 or 2;
// or, of the part blockIdx.z of K alone, partial [parts, B, H', W', O]
template <int BN, int CLUSTER>
__global__ void __launch_bounds__(288, BN == 128 ? 2 : 1) __cluster_dims__(CLUSTER, 1, 1)
conv2d_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const half* __restrict__ OPTIONAL b,
             const half* __restrict__ OPTIONAL embedding, const half* __restrict__ OPTIONAL skip, half* __restrict__ y,
             float* __restrict__ OPTIONAL partial, int B, int H, int W, int C, int O, int rows, int columns, int scale) {
    using Tile = WgmmaTile<BN, true, CLUSTER>;
    DYNAMIC_SHARED(char, shared);
    const int across = (W + columns - 1) / columns, down = (H + rows - 1) / rows, n0 = blockIdx.y * BN;
    const int box = blockIdx.x / (scale * scale), odd_row = blockIdx.x / scale % scale, odd_column = blockIdx.x % scale;
    const int w0 = box % across * columns, h0 = box / across % down * rows;
    const int image0 = box / (across * down) * (Tile::BM / (rows * columns));  // the box's first pixel is x[image0, h0, w0]
    const int blocks = (C + Tile::BK - 1) / Tile::BK;  // of 64 channels: 9 times as many slices, divided among the parts
    const int first = (int)blockIdx.z * 9 * blocks / (int)gridDim.z, slices = ((int)blockIdx.z + 1) * 9 * blocks / (int)gridDim.z - first;
    if (threadIdx.x == Tile::CONSUMERS) prefetch_map(x), prefetch_map(w);
    Tile tile(shared);

    if (threadIdx.x >= Tile::CONSUMERS) {
        int i = first / blocks / 3, j = first / blocks % 3, c = first % blocks * Tile::BK;  // the tap, and the slice's first channel
        if (threadIdx.x == Tile::CONSUMERS)
            tile.produce(slices, [&](int, half* to_a, half* to_b, Barrier* full) {
                const int down_by = scale == 1 ? i - 1 : (odd_row + i - 1) >> 1, right_by = scale == 1 ? j - 1 : (odd_column + j - 1) >> 1;
                tma_load(to_a, x, full, c, w0 + right_by, h0 + down_by, image0);
                Tile::load_share(to_b, w, full, 0, c + Tile::rank() * Tile::K_SHARE, n0 / 32, 3 * i + j);
                if ((c += Tile::BK) >= C) {
                    c = 0;
                    if (++j == 3) j = 0, i++;
                }
            });
        Tile::finish();
        return;
    }
    tile.consume(slices);

    tile.each_row([&](int row, auto pairs) {
        const int image = image0 + row / (rows * columns), h = h0 + row / columns % rows, column0 = w0 + row % columns;
        if (image >= B || h >= H || column0 >= W) return;
        const long long m = ((long long)image * scale * H + scale * h + odd_row) * scale * W + scale * column0 + odd_column;
        const half* time = embedding ? embedding + (long long)image * O : nullptr;
        const half* before = skip ? skip + m * O : nullptr;
        half* out = y + m * O;
        float* part = partial ? partial + ((long long)blockIdx.z * B * scale * H * scale * W + m) * O : nullptr;
        pairs([&](int column, float v0, float v1) {
            const int n = n0 + column;
            if (n >= O) return;
            if (part) {
                *reinterpret_cast<float2*>(part + n) = make_float2(v0, v1);
                return;
            }
            if (b) add_two(b + n, v0, v1);
            if (time) add_two(time + n, v0, v1);
            if (before) add_two(before + n, v0, v1);
            store_two(out + n, v0, v1);
        });
    });
    Tile::finish();
}
