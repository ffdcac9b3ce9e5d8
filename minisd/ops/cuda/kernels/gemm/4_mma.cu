// Idea:           tensor cores: a warp multiplies 16 x 16 by 16 x 8 in one instruction, while cp.async brings the next slices.
// Differs:        from rung 3: half operands; the tile is mma_tile.cuh; four slices under way instead of none; bias and
//                 skip added on the way out.
// Work split:     grid (N / BN, M / BM), block 32 BM BN / (WM WN); 4 (40 BM + 40 BN) halves of shared memory: 80 KiB for 128 x 128.
// Global traffic: M N K (2 / BM + 2 / BN) + 2 M N bytes, + 2 M N for the skip; saved is a pass for the bias, 4 M N, and one for the
//                 skip, 6 M N.
// Limits:         half; K a multiple of 8 (16-byte loads); any M; N even for the large tiles.
// Numerics:       products of halves exact, sums in float in the order of the tensor core; one rounding at the end.
// Source:         PTX ISA, mma.m16n8k16, ldmatrix, cp.async; CUTLASS, "Efficient GEMM in CUDA".
#include "mma_tile.cuh"

// x [M, K], w [N, K], b [N], skip [M, N] -> y [M, N]; EVEN: N is even
template <int BM, int BN, int WM, int WN, bool EVEN>
__global__ void __launch_bounds__(BM / WM * (BN / WN) * 32)
gemm_mma(const half* __restrict__ x, const half* __restrict__ w, const half* __restrict__ OPTIONAL b,
         const half* __restrict__ OPTIONAL skip, half* __restrict__ y, int M, int N, int K) {
    using Tile = MmaTile<BM, BN, WM, WN, false>;
    DYNAMIC_SHARED(half, shared);
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, t = threadIdx.x;
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
            const int n = n0 + i / (Tile::BK / 8), k = slice * Tile::BK + i % (Tile::BK / 8) * 8;  // w[n, k … k + 7]
            const bool valid = n < N && k < K;
            copy_async_16(Tile::b_chunk(stage, i), valid ? w + (long long)n * K + k : w, valid);
        }
    });

    tile.each_row([&](int row, auto pairs) {
        const int m = m0 + row;
        if (m >= M) return;
        const half* before = skip ? skip + (long long)m * N : nullptr;
        half* out = y + (long long)m * N;
        pairs([&](int column, float v0, float v1) {
            const int n = n0 + column;
            if (n >= N) return;
            if (b) add_pair<EVEN>(b, n, N, v0, v1);
            if (before) add_pair<EVEN>(before, n, N, v0, v1);
            store_pair<EVEN>(out, n, N, v0, v1);
        });
    });
}
