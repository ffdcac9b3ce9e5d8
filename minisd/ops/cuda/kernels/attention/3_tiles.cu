// Idea:           a block of 16 queries reads each key and value once: tiles of 32 keys in shared memory.
// Differs:        from rung 2: lane l scores key l of the tile (no shuffles in the dot product); the maximum changes once a tile, not once a key.
// Work split:     grid (S / 16, N, B), block 128 = 4 warps of 4 queries; 4 (16 D + 32 (D + 1) + 32 D) bytes of shared memory.
// Global traffic: K and V once for 16 queries, B N S T D sizeof(T) / 8 bytes.
// Limits:         T half or float; D <= 32 COLUMNS, COLUMNS 2, 5 or 8; any number of keys.
// Numerics:       float; exp(s - m) with the running maximum m of the tiles so far; the values of one tile are summed, then the tiles.
// Source:         Dao et al., arXiv:2205.14135 (FlashAttention), algorithm 1.
#include "common.cuh"

constexpr int QUERIES = 16, KEYS = 32, EACH = 4;  // queries of one warp

// q, y [B, S, N, D]; k, v [B, T, N, D]
template <typename T, int COLUMNS>
__global__ void __launch_bounds__(128, 4)
attention_tiles(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ y,
                int N, int queries, int keys, int D, float scale, int causal) {
    DYNAMIC_SHARED(float, qs);             // [QUERIES, D]
    float* ks = qs + QUERIES * D;          // [KEYS, D + 1]: 32 lanes that read one column hit 32 banks
    float* vs = ks + KEYS * (D + 1);       // [KEYS, D]
    const int n = blockIdx.y, b = blockIdx.z, t = threadIdx.x, lane = t % WARP, mine = t / WARP * EACH, s0 = blockIdx.x * QUERIES;
    const long long row = (long long)N * D;
    const long long own = ((long long)b * queries + s0) * row + n * D;  // q[b, s0, n]
    const long long others = (long long)b * keys * row + n * D;         // k[b, 0, n], v[b, 0, n]
    const int last = min(queries, s0 + QUERIES) - 1, seen = causal ? keys - queries + last + 1 : keys;

    for (int i = t; i < QUERIES * D; i += 128) qs[i] = s0 + i / D < queries ? to_float(q[own + i / D * row + i % D]) * scale : 0.0f;
    float sum[EACH][COLUMNS] = {}, largest[EACH], weight[EACH] = {};
#pragma unroll
    for (int i = 0; i < EACH; i++) largest[i] = -INFINITY;

    for (int j0 = 0; j0 < seen; j0 += KEYS) {
        __syncthreads();
        for (int i = t; i < KEYS * D; i += 128) {
            const int j = i / D, d = i % D;
            const bool valid = j0 + j < seen;
            ks[j * (D + 1) + d] = valid ? to_float(k[others + (j0 + j) * row + d]) : 0.0f;
            vs[i] = valid ? to_float(v[others + (j0 + j) * row + d]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int s = s0 + mine + i, visible = causal ? keys - queries + s + 1 : keys;
            float score = 0.0f;
#pragma unroll 4
            for (int d = 0; d < D; d++) score += qs[(mine + i) * D + d] * ks[lane * (D + 1) + d];
            if (j0 + lane >= min(seen, visible)) score = -INFINITY;
            const float before = largest[i];
            largest[i] = fmaxf(before, warp_max(score));
            const float rescale = expf(before - largest[i]), p = expf(score - largest[i]);
            weight[i] = weight[i] * rescale + warp_sum(p);
            float part[COLUMNS] = {};
#pragma unroll 4
            for (int j = 0; j < KEYS; j++) {
                const float pj = __shfl_sync(ALL_LANES, p, j);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++)
                    if (lane + c * WARP < D) part[c] += pj * vs[j * D + lane + c * WARP];
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sum[i][c] = sum[i][c] * rescale + part[c];
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            if (s0 + mine + i < queries && lane + c * WARP < D) y[own + (mine + i) * row + lane + c * WARP] = from_float<T>(sum[i][c] / weight[i]);
}
