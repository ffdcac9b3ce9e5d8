// Idea:           a copy engine and tensor cores that work by themselves: one thread asks for boxes of x and w (TMA), four warps together
//                 begin a product of 64 x BN x 16 whose operands stay in shared memory (wgmma), and barriers in memory say what is ready.
// Differs:        from rung 4: no thread computes an address of an operand or holds a fragment of one; warps have roles, one loads and
//                 eight multiply; no __syncthreads in the loop; a block makes several tiles, and loads for the next while it stores one;
//                 two blocks with the same columns of y fetch half of w each and send it to both.
// Work split:     grid as many blocks as there is room for, of tiles 128 x BN; block 288 = two warpgroups of 64 rows and a warp that
//                 loads; ring of slices of 64, each 128 (128 + BN) bytes: BN = 160 has four, 145 KiB with 1 KiB to align; BN = 128 three,
//                 97 KiB, two blocks a multiprocessor.
// Global traffic: M N K (2 / (128 CLUSTER) + 2 / BN) + 2 M N bytes, and 2 M N for the skip.
// Limits:         half; compute capability 9.0 only; K a multiple of 8 (TMA's strides are multiples of 16 bytes), N even; any M.
// Numerics:       as rung 4: products of halves exact, sums in float in the order of the tensor core; one rounding at the end.
// Source:         PTX ISA, wgmma.mma_async, cp.async.bulk.tensor, mbarrier; CUTLASS's warp-specialised mainloop for sm_90.
#include "wgmma_tile.cuh"

// x [M, K] in boxes [128, 64], w [N, K] in boxes [BN / CLUSTER, 64], b [N], skip [M, N] -> y [M, N]
template <int BN, int CLUSTER>
__global__ void __launch_bounds__(288, BN == 128 ? 2 : 1) __cluster_dims__(CLUSTER, 1, 1)
gemm_wgmma(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w, const half* __restrict__ OPTIONAL b,
           const half* __restrict__ OPTIONAL skip, half* __restrict__ y, int M, int N, int K) {
    using Tile = WgmmaTile<BN, false, CLUSTER>;
    DYNAMIC_SHARED(char, shared);
    constexpr int ROWS = CLUSTER * Tile::BM;  // of the tiles of a cluster
    const int across = (N + BN - 1) / BN, tiles = across * ((M + ROWS - 1) / ROWS), slices = (K + Tile::BK - 1) / Tile::BK;
    const int rank = Tile::rank(), first = blockIdx.x / CLUSTER, step = gridDim.x / CLUSTER;
    if (threadIdx.x == Tile::CONSUMERS) prefetch_map(x), prefetch_map(w);
    Tile tile(shared);

    if (threadIdx.x >= Tile::CONSUMERS) {
        for (int t = first; t < tiles && threadIdx.x == Tile::CONSUMERS; t += step)
            tile.produce(slices, [&](int slice, half* to_a, half* to_b, Barrier* full) {
                tma_load(to_a, x, full, slice * Tile::BK, t / across * ROWS + rank * Tile::BM);
                Tile::load_share(to_b, w, full, slice * Tile::BK, t % across * BN + rank * Tile::N_SHARE);
            });
        Tile::finish();
        return;
    }
    for (int t = first; t < tiles; t += step) {
        tile.consume(slices);
        tile.each_row([&](int row, auto pairs) {
            const int m = t / across * ROWS + rank * Tile::BM + row;
            if (m >= M) return;
            const half* before = skip ? skip + (long long)m * N : nullptr;
            half* out = y + (long long)m * N;
            pairs([&](int column, float v0, float v1) {
                const int n = t % across * BN + column;
                if (n >= N) return;
                if (b) add_two(b + n, v0, v1);
                if (before) add_two(before + n, v0, v1);
                store_two(out + n, v0, v1);
            });
        });
    }
    Tile::finish();
}
