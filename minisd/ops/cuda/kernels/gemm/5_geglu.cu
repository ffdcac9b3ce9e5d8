// Idea:           the two halves of GEGLU's input are made by the same thread, which stores their product h GELU(g) and nothing else.
// Differs:        from rung 4: rows of w come in pairs, n and n + D, so that neighbouring columns of the tile are value and gate; the results
//                 meet in shared memory, to leave in runs of 16 bytes.
// Work split:     grid (2 D / BN, M / BM), block 32 BM BN / (WM WN); shared memory as rung 4: 90 KiB for 128 x 160.
// Global traffic: M D K (4 / BM + 4 / BN) + 2 M D bytes; saved are 8 M D: y [M, 2 D] is neither written nor read.
// Limits:         half; K and D multiples of 8; any M.
// Numerics:       as rung 4; bias, GELU by erfc and the product in float, one rounding at the end.
// Source:         Shazeer, arXiv:2002.05202; diffusers GEGLU; ONNX Runtime's BiasSplitGelu, which fuses all but the product.
#include "mma_tile.cuh"

// x [M, K], w [2 D, K], b [2 D] -> y [M, D] = (x w[: D]^T + b[: D]) GELU(x w[D :]^T + b[D :])
template <int BM, int BN, int WM, int WN>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32)
gemm_geglu(const half* __restrict__ x, const half* __restrict__ w, const half* __restrict__ b, half* __restrict__ y, int M, int D, int K) {
    using Tile = MmaTile<BM, BN, WM, WN, false>;
    constexpr int COLUMNS = BN / 2, STRIDE = COLUMNS + Tile::PAD;  // of the results in shared memory
    DYNAMIC_SHARED(half, shared);
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * COLUMNS, t = threadIdx.x;
    Tile tile;

    tile.run(shared, (K + Tile::BK - 1) / Tile::BK, [&](int slice, half* stage) {
#pragma unroll
        for (int i = t; i < Tile::A_CHUNKS; i += Tile::THREADS) {
            const int m = m0 + i / (Tile::BK / 8), k = slice * Tile::BK + i % (Tile::BK / 8) * 8;  // x[m, k … k + 7]
            const bool valid = m < M && k < K;
            copy_async_16(Tile::a_chunk(stage, i), valid ? x + (long long)m * K + k : x, valid);
        }
#pragma unroll
        for (int i = t; i < Tile::B_CHUNKS; i += Tile::THREADS) {
            const int row = i / (Tile::BK / 8), n = n0 + row / 2, k = slice * Tile::BK + i % (Tile::BK / 8) * 8;  // w[n or n + D, k … k + 7]
            const bool valid = n < D && k < K;
            copy_async_16(Tile::b_chunk(stage, i), valid ? w + (long long)(row % 2 ? n + D : n) * K + k : w, valid);
        }
    });

    __syncthreads();  // everyone has left the last slice: the ring is free for the results
    tile.each_row([&](int row, auto pairs) {
        pairs([&](int column, float value, float gate) {
            const int n = n0 + column / 2;
            if (n < D) shared[row * STRIDE + column / 2] = __float2half_rn((value + to_float(b[n])) * gelu(gate + to_float(b[n + D])));
        });
    });
    __syncthreads();
    for (int i = t; i < BM * COLUMNS / 8; i += Tile::THREADS) {
        const int m = m0 + i / (COLUMNS / 8), column = i % (COLUMNS / 8) * 8;
        if (m < M && n0 + column < D) store_vector(y + (long long)m * D + n0 + column, load_vector(shared + i / (COLUMNS / 8) * STRIDE + column));
    }
}
