// Idea:           keep every pipe of the multiprocessor busy: K and V arrive in a ring, each with its own wait, while the tensor cores multiply
//                 and the exponentials of other warps run.
// Differs:        from rung 4: up to 32 queries a warp, so that a fragment of K or V read from shared memory is multiplied twice; swizzled rows
//                 instead of padded ones; V is awaited after the scores are weighed, not with K; the scale rides in the exponent's fma; only
//                 tiles with a last key or the causal diagonal look at indices; a head of 40 ends with an mma of depth 8 instead of zeros.
// Work split:     grid (S / (16 MT WARPS), N, B), block 32 WARPS; a warp owns 16 MT queries, in registers, which must suffice for BLOCKS blocks a
//                 multiprocessor. 4 STAGES KEYS D bytes of shared memory: 20 KiB for D = 40 with two stages of 64 keys.
// Global traffic: K and V once for 16 MT WARPS queries: 4 B N S T D / (16 MT WARPS) bytes, + 4 B N S D for Q and y.
// Shared traffic: 4 D bytes a key for 16 MT queries: B N S T D / (4 MT) bytes.
// Limits:         half; D 40, 64, 80 or 160; scale > 0; any number of queries and keys; causal from the end.
// Numerics:       scores and sums in float; exponentials as powers of two (2 ulp); the probabilities are rounded to half before P V:
//                 relative L2 error at most 1e-3.
// Source:         Dao, arXiv:2307.08691 (FlashAttention-2); PTX ISA, mma.m16n8k16, mma.m16n8k8, cp.async.
#include "attention_tile.cuh"

// q, y [B, S, N, D]; k, v [B, T, N, D]; scale is log2(e) times the attention's scale
template <int D, int WARPS, int MT, int KEYS, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
attention_tuned(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v, half* __restrict__ y,
                int N, int queries, int keys, float scale, int causal) {
    static_assert(STAGES >= 2, "a tile is asked for while an older one is used");
    constexpr int THREADS = WARPS * WARP, TILE = KEYS * D, PENDING = 2 * STAGES - 3;  // groups asked for after the one that is needed
    DYNAMIC_SHARED(half, ks);         // [STAGES, KEYS, D]
    half* vs = ks + STAGES * TILE;    // likewise
    const int n = blockIdx.y, b = blockIdx.z, block = blockIdx.x * 16 * MT * WARPS, s0 = block + threadIdx.x / WARP * 16 * MT;
    const long long step = (long long)N * D, own = (long long)b * queries * step + n * D, others = (long long)b * keys * step + n * D;
    const int ahead = causal ? keys - queries + 1 : keys;  // query s sees the first min(keys, ahead + s) keys
    const int tiles = (min(keys, ahead + block + 16 * MT * WARPS - 1) + KEYS - 1) / KEYS;
    const RowLoader<D, KEYS, THREADS> of_k(k + others, N * D, keys), of_v(v + others, N * D, keys);
    const auto ask = [&](half* ring, const RowLoader<D, KEYS, THREADS>& loader, int tile) {
        if (tile < tiles) loader.ask(ring + tile % STAGES * TILE, tile);
        copy_commit();
    };

#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) ask(ks, of_k, tile), ask(vs, of_v, tile);
    QueryTile<D, MT, KEYS> mine;
    mine.begin(q + own, step, s0, queries);

#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        copy_wait<PENDING>();
        __syncthreads();  // these keys are here for everyone, and everyone has left the tile before, whose buffers are filled next
        ask(ks, of_k, tile + STAGES - 1);
        mine.meet(ks + tile % STAGES * TILE);
        if (tile * KEYS + KEYS > min(keys, ahead + s0)) mine.template hide<0>(tile * KEYS, s0, keys, ahead);
        mine.template weigh<false>(scale);
        copy_wait<PENDING>();
        __syncthreads();  // these values are here for everyone
        ask(vs, of_v, tile + STAGES - 1);
        mine.gather(vs + tile % STAGES * TILE);
    }
    mine.end(y + own, step, s0, queries);
}
