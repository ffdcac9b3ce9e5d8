// Idea:           both products as wgmma, keys and values by TMA: the scores of a warpgroup's 64 queries are a product of two tiles in
//                 shared memory, their weights are packed in the registers they are in and multiply the values from there.
// Differs:        from rung 4: 128 queries a block, two warpgroups that know nothing of each other; a warp loads; while the scores of one
//                 tile become weights, the tensor cores multiply the weights of the tile before with its values.
// Work split:     grid (S / 128, N, B), block 384 = two warpgroups of 240 registers a thread and one of 24 that loads; Q, and a ring of
//                 two tiles of KEYS keys and values: 80 KiB for D = 40, 64 (KEYS = 128), 144 for 80 (128), 136 for 160 (64); and 1 KiB.
// Global traffic: K and V once for 128 queries, B N S T D / 32 bytes, + 4 B N S D.
// Limits:         half; compute capability 9.0 only; D 40, 64, 80 or 160; scale above 0; any number of queries and keys; causal from the end.
// Numerics:       as rung 4: scores and sums in float, exponentials as powers of two (2 ulp), weights rounded to half before they meet V:
//                 relative L2 error at most 1e-3. A head of 40 is multiplied as 48 in Q K^T and as 64 in P V, the rest zeros.
// Source:         Shah et al., arXiv:2407.08608 (FlashAttention-3, algorithm 2); PTX ISA, wgmma.mma_async with A in registers.
#include "common.cuh"
#include "hopper.cuh"

constexpr int QUERIES = 128, CONSUMERS = 256, STAGES = 2;
constexpr float NEVER = -1.0e30f;  // a finite -infinity: NEVER - NEVER is 0, not NaN

// Tiles as TMA brings them. Q and K by k, in blocks of 64 columns of a head; V by n, in blocks of 32.
template <int D> struct HeadTiles {
    static constexpr int KEYS = D > 96 ? 64 : 128, K_BLOCKS = (D + 63) / 64, V_BLOCKS = (D + 31) / 32, WIDTH = 32 * V_BLOCKS;
    static constexpr int Q_SIZE = QUERIES * 64 * K_BLOCKS, K_SIZE = KEYS * 64 * K_BLOCKS, V_SIZE = KEYS * WIDTH;  // in halves
};

// q in boxes [1, 128, 1, 64], k in [1, KEYS, 1, 64], v in [1, KEYS, 1, 32]: q, y [B, S, N, D]; k, v [B, T, N, D].
// scale is log2(e) times the attention's scale.
template <int D>
__global__ void __launch_bounds__(384, 1)
attention_wgmma(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
                half* __restrict__ y, int N, int queries, int keys, float scale, int causal) {
    using Tiles = HeadTiles<D>;
    constexpr int KEYS = Tiles::KEYS, WIDTH = Tiles::WIDTH;
    DYNAMIC_SHARED(char, shared);
    half* qs = reinterpret_cast<half*>(shared + (1024 - shared_address(shared) % 1024));
    half *ks = qs + Tiles::Q_SIZE, *vs = ks + STAGES * Tiles::K_SIZE;
    Barrier* q_full = reinterpret_cast<Barrier*>(vs + STAGES * Tiles::V_SIZE);
    Barrier *k_full = q_full + 1, *k_empty = k_full + STAGES, *v_full = k_empty + STAGES, *v_empty = v_full + STAGES;
    if (threadIdx.x == CONSUMERS) prefetch_map(q), prefetch_map(k), prefetch_map(v);
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(k_full + i, 1), barrier_init(k_empty + i, CONSUMERS / WARP);
            barrier_init(v_full + i, 1), barrier_init(v_empty + i, CONSUMERS / WARP);
        }
        barriers_are_made();
    }
    __syncthreads();

    const int n = blockIdx.y, b = blockIdx.z, s0 = blockIdx.x * QUERIES, lane = threadIdx.x % WARP;
    const int seen = causal ? min(keys, keys - queries + s0 + QUERIES) : keys, tiles = (seen + KEYS - 1) / KEYS;

    if (threadIdx.x >= CONSUMERS) {
        give_registers<24>();
        if (threadIdx.x > CONSUMERS) return;
        barrier_expect(q_full, Tiles::Q_SIZE * 2);
        for (int i = 0; i < Tiles::K_BLOCKS; i++) tma_load(qs + i * QUERIES * 64, q, q_full, i * 64, n, s0, b);
#pragma unroll 1
        for (int tile = 0; tile < tiles; tile++) {
            const int stage = tile % STAGES, before = (tile / STAGES - 1) % 2;
            if (tile >= STAGES) barrier_wait(k_empty + stage, before);
            barrier_expect(k_full + stage, Tiles::K_SIZE * 2);
            for (int i = 0; i < Tiles::K_BLOCKS; i++)
                tma_load(ks + stage * Tiles::K_SIZE + i * KEYS * 64, k, k_full + stage, i * 64, n, tile * KEYS, b);
            if (tile >= STAGES) barrier_wait(v_empty + stage, before);
            barrier_expect(v_full + stage, Tiles::V_SIZE * 2);
            for (int i = 0; i < Tiles::V_BLOCKS; i++)
                tma_load(vs + stage * Tiles::V_SIZE + i * KEYS * 32, v, v_full + stage, i * 32, n, tile * KEYS, b);
        }
        return;
    }

    take_registers<240>();
    const int row0 = s0 + threadIdx.x / WARP * 16 + lane / 4;  // this thread has parts of the queries row0 and row0 + 8
    float score[KEYS / 2], sum[WIDTH / 2], largest[2] = {NEVER, NEVER}, weight[2] = {};
    unsigned p[KEYS / 16][4];  // weights of the tile before, as the left operand of P V
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) sum[i] = 0.0f;

    const auto await_keys = [&](int tile) { barrier_wait(k_full + tile % STAGES, tile / STAGES % 2); };
    const auto begin_scores = [&](int tile) {  // score = Q K^T: 64 queries, KEYS keys
        const half *from_q = qs + threadIdx.x / 128 * 64 * 64, *from_k = ks + tile % STAGES * Tiles::K_SIZE;
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < (D + 15) / 16; c++)
            wgmma<KEYS, false>(score, further(descriptor_by_k(from_q + c / 4 * QUERIES * 64), c % 4 * NEXT_16_BY_K),
                               further(descriptor_by_k(from_k + c / 4 * KEYS * 64), c % 4 * NEXT_16_BY_K), c > 0);
        wgmma_commit();
    };
    const auto begin_sums = [&](int tile) {  // sum += P V
        const Descriptor from_v = descriptor_by_n(vs + tile % STAGES * Tiles::V_SIZE, KEYS);
        barrier_wait(v_full + tile % STAGES, tile / STAGES % 2);
        wgmma_fence();
#pragma unroll
        for (int c = 0; c < KEYS / 16; c++) wgmma<WIDTH, true>(sum, p[c], further(from_v, c * NEXT_16_BY_N), true);
        wgmma_commit();
    };
    const auto leave = [&](Barrier* empty) {
        if (lane == 0) barrier_arrive(empty);
    };
    // The scores of a tile become weights, in place; rescale: what was summed with the maximum before is multiplied by.
    const auto weigh = [&](int tile, float (&rescale)[2]) {
        const int limit = causal ? keys - queries + row0 + 1 : keys;  // the first key that row0 does not see, if there is one
        if (tile * KEYS + KEYS > min(keys, limit)) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                const int key = tile * KEYS + i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (key >= min(keys, causal ? limit + i / 2 % 2 * 8 : keys)) score[i] = NEVER;
            }
        }
        float highest[2] = {largest[0], largest[1]};
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) highest[i / 2 % 2] = fmaxf(highest[i / 2 % 2], score[i]);
#pragma unroll
        for (int r = 0; r < 2; r++) {  // the four lanes of a row agree on its maximum
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL_LANES, highest[r], 1));
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL_LANES, highest[r], 2));
            rescale[r] = exp2_fast((largest[r] - highest[r]) * scale);
            largest[r] = highest[r], weight[r] *= rescale[r];
        }
        const float shift[2] = {-largest[0] * scale, -largest[1] * scale};
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            score[i] = exp2_fast(fmaf(score[i], scale, shift[i / 2 % 2]));
            weight[i / 2 % 2] += score[i];
        }
    };
    const auto pack = [&]() {
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {  // columns 8 (i / 2) + 2 (lane % 4) and the next, rows + 8 (i % 2)
            const __half2 pair = __floats2half2_rn(score[2 * i], score[2 * i + 1]);
            p[i / 4][i % 4] = *reinterpret_cast<const unsigned*>(&pair);
        }
    };

    float rescale[2];
    barrier_wait(q_full, 0);
    await_keys(0);
    begin_scores(0);
    wgmma_wait<0>();
    keep(score);
    leave(k_empty);
    weigh(0, rescale);
    pack();
    if (tiles > 1) await_keys(1);
#pragma unroll 1
    for (int tile = 1; tile < tiles; tile++) {
        keep(score), keep(sum);
        begin_scores(tile);
        begin_sums(tile - 1);
        wgmma_wait<1>();
        keep(score);
        leave(k_empty + tile % STAGES);
        weigh(tile, rescale);
        if (tile + 1 < tiles) await_keys(tile + 1);  // here, because the exponentials then stand before the wait for P V, and run beside it
        wgmma_wait<0>();
        keep(sum);
        leave(v_empty + (tile - 1) % STAGES);
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) sum[i] *= rescale[i / 2 % 2];
        pack();
    }
    keep(sum);
    begin_sums(tiles - 1);
    wgmma_wait<0>();
    keep(sum);

#pragma unroll
    for (int r = 0; r < 2; r++) {
        weight[r] += __shfl_xor_sync(ALL_LANES, weight[r], 1);
        weight[r] += __shfl_xor_sync(ALL_LANES, weight[r], 2);
        const int s = row0 + r * 8;
        if (s >= queries) continue;
        half* out = y + (((long long)b * queries + s) * N + n) * D;  // y[b, s, n]
        const float share = 1.0f / weight[r];
#pragma unroll
        for (int c = 0; c < D / 8; c++)
            *reinterpret_cast<__half2*>(out + c * 8 + lane % 4 * 2) = __floats2half2_rn(sum[4 * c + 2 * r] * share, sum[4 * c + 2 * r + 1] * share);
    }
}
