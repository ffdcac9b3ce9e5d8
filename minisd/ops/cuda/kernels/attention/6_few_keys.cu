// Idea:           a prompt has 77 tokens: all keys and values of a head fit into shared memory, and a query has all its scores at once.
// Differs:        from rung 5: no ring, no running maximum, no rescaling; a block keeps K and V while one tile of queries after another passes.
// Work split:     grid (blocks of a head, N, B), block 128 = 4 warps of 16 queries; a block takes every gridDim.x-th tile of 64 queries;
//                 320 D bytes of shared memory: 12.5 KiB for D = 40.
// Global traffic: 4 B N S D for Q and y, + K and V once for each block, 4 B N T D gridDim.x bytes from the L2 cache.
// Limits:         half; D 40, 64, 80 or 160; scale > 0; at most 80 keys; causal from the end.
// Numerics:       as rung 5.
// Source:         the definition; the layout of rung 5.
#include "attention_tile.cuh"

constexpr int KEYS = 80, THREADS = 128, ROWS = 64;

// q, y [B, S, N, D]; k, v [B, T, N, D]; scale is log2(e) times the attention's scale
template <int D>
__global__ void __launch_bounds__(THREADS)
attention_few_keys(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v, half* __restrict__ y,
                   int N, int queries, int keys, float scale, int causal) {
    DYNAMIC_SHARED(half, ks);      // [KEYS, D]
    half* vs = ks + KEYS * D;      // likewise
    const int n = blockIdx.y, b = blockIdx.z;
    const long long step = (long long)N * D, own = (long long)b * queries * step + n * D, others = (long long)b * keys * step + n * D;
    const int ahead = causal ? keys - queries + 1 : keys;
    RowLoader<D, KEYS, THREADS>(k + others, N * D, keys).ask(ks, 0);
    RowLoader<D, KEYS, THREADS>(v + others, N * D, keys).ask(vs, 0);
    copy_commit();

    QueryTile<D, 1, KEYS> mine;
    const int first = blockIdx.x * ROWS + threadIdx.x / WARP * 16;
    mine.begin(q + own, step, first, queries);
    copy_wait<0>();
    __syncthreads();  // the only one: from here on nothing in shared memory changes
#pragma unroll 1
    for (int s0 = first; s0 < queries; s0 += gridDim.x * ROWS) {
        if (s0 != first) mine.begin(q + own, step, s0, queries);
        mine.meet(ks);
        if (causal || keys < KEYS - 16) mine.template hide<0>(0, s0, keys, ahead);
        else mine.template hide<KEYS - 16>(0, s0, keys, ahead);
        mine.template weigh<true>(scale);
        mine.gather(vs);
        mine.end(y + own, step, s0, queries);
    }
}
