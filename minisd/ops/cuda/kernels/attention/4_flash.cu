// Idea:           both products on tensor cores, the scores never leave the registers: the accumulator of Q K^T has the layout that the
//                 left operand of P V needs.
// Differs:        from rung 3: 64 queries and 64 keys a tile; half operands; the next tile of K and V arrives by cp.async meanwhile.
// Work split:     grid (S / 64, N, B), block 128 = 4 warps of 16 queries; Q in registers; 64 (D' + 8) halves for Q and for each of two
//                 tiles of K and V, D' = D rounded up to 16: 35 KiB for D = 40; D = 160 has one tile of each, 63 KiB.
// Global traffic: K and V once for 64 queries, B N S T D / 16 bytes, + 4 B N S D.
// Limits:         half; D 40, 64, 80 or 160; any number of queries and keys; causal from the end.
// Numerics:       scores and sums in float; exponentials as powers of two (2 ulp); the probabilities are rounded to half before P V:
//                 relative L2 error at most 1e-3.
// Source:         Dao, arXiv:2307.08691 (FlashAttention-2); PTX ISA, mma.m16n8k16.
#include "common.cuh"
#include "ptx.cuh"

constexpr int ROWS = 64;           // of a tile of queries, of keys
constexpr float NEVER = -1.0e30f;  // a finite -infinity: NEVER - NEVER is 0, not NaN

// 64 rows of a head, from row `first` of `rows`, into shared memory [64, STRIDE]; zeros beyond the rows and beyond D.
template <int D, int PADDED, int STRIDE>
__device__ __forceinline__ void load_tile(half* shared, const half* head, long long row, int first, int rows) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * (PADDED / 8); i += 128) {
        const int r = i / (PADDED / 8), d = i % (PADDED / 8) * 8;
        const bool valid = first + r < rows && d < D;
        copy_async_16(shared + r * STRIDE + d, valid ? head + (first + r) * row + d : head, valid);
    }
}

// q, y [B, S, N, D]; k, v [B, T, N, D]; scale is log2(e) times the attention's scale
template <int D>
__global__ void __launch_bounds__(128)
attention_flash(const half* __restrict__ q, const half* __restrict__ k, const half* __restrict__ v, half* __restrict__ y,
                int N, int queries, int keys, float scale, int causal) {
    constexpr int PADDED = (D + 15) / 16 * 16, STRIDE = PADDED + 8, TILE = ROWS * STRIDE, BUFFERS = D > 96 ? 1 : 2;
    DYNAMIC_SHARED(half, shared);  // Q, then BUFFERS times K and V
    const int n = blockIdx.y, b = blockIdx.z, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int s0 = blockIdx.x * ROWS;
    const long long row = (long long)N * D;                            // from one token to the next
    const half* query = q + (long long)b * queries * row + n * D;      // q[b, 0, n]
    const half* key = k + (long long)b * keys * row + n * D;           // k[b, 0, n]
    const half* value = v + (long long)b * keys * row + n * D;         // v[b, 0, n]
    const int seen = causal ? min(keys, keys - queries + s0 + ROWS) : keys, tiles = (seen + ROWS - 1) / ROWS;
    const auto buffer = [&](int tile) { return shared + TILE + tile % BUFFERS * 2 * TILE; };
    const auto load_keys = [&](int tile) {
        load_tile<D, PADDED, STRIDE>(buffer(tile), key, row, tile * ROWS, keys);
        load_tile<D, PADDED, STRIDE>(buffer(tile) + TILE, value, row, tile * ROWS, keys);
        copy_commit();
    };

    load_tile<D, PADDED, STRIDE>(shared, query, row, s0, queries);
    copy_commit();
    load_keys(0);
    copy_wait<1>();
    __syncthreads();
    unsigned fq[PADDED / 16][4];
#pragma unroll
    for (int c = 0; c < PADDED / 16; c++) ldmatrix<4>(fq[c], shared + (warp * 16 + lane % 16) * STRIDE + c * 16 + lane / 16 * 8);

    float sum[D / 8][4] = {}, largest[2] = {NEVER, NEVER}, weight[2] = {};  // of rows g and g + 8 of the warp's 16
    for (int tile = 0; tile < tiles; tile++) {
        if (BUFFERS == 2 && tile + 1 < tiles) load_keys(tile + 1), copy_wait<1>();
        else copy_wait<0>();
        __syncthreads();
        const half *ks = buffer(tile), *vs = ks + TILE;

        float score[ROWS / 8][4] = {};  // Q K^T: 16 queries, 64 keys
#pragma unroll
        for (int j = 0; j < ROWS / 8; j += 2)
#pragma unroll
            for (int c = 0; c < PADDED / 16; c++) {
                unsigned fk[2][2];
                ldmatrix<4>(fk[0], ks + (j * 8 + lane % 8 + lane / 16 * 8) * STRIDE + c * 16 + lane / 8 % 2 * 8);
                mma_16x8x16(score[j], fq[c], fk[0]);
                mma_16x8x16(score[j + 1], fq[c], fk[1]);
            }

        float highest[2] = {largest[0], largest[1]};
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key_index = tile * ROWS + j * 8 + t * 2 + i % 2, query_index = s0 + warp * 16 + g + i / 2 * 8;
                const int limit = causal ? min(keys, keys - queries + query_index + 1) : keys;
                score[j][i] = key_index < limit ? score[j][i] * scale : NEVER;
                highest[i / 2] = fmaxf(highest[i / 2], score[j][i]);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {  // the four lanes of a row agree on its maximum
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL_LANES, highest[r], 1));
            highest[r] = fmaxf(highest[r], __shfl_xor_sync(ALL_LANES, highest[r], 2));
            const float rescale = exp2_fast(largest[r] - highest[r]);
            largest[r] = highest[r], weight[r] *= rescale;
#pragma unroll
            for (int c = 0; c < D / 8; c++) sum[c][2 * r] *= rescale, sum[c][2 * r + 1] *= rescale;
        }

        unsigned p[ROWS / 16][4];  // exp of the scores, as the left operand of P V
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[j][i] = exp2_fast(score[j][i] - largest[i / 2]), weight[i / 2] += score[j][i];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const __half2 pair = __floats2half2_rn(score[j][2 * r], score[j][2 * r + 1]);
                p[j / 2][j % 2 * 2 + r] = *reinterpret_cast<const unsigned*>(&pair);
            }
        }
#pragma unroll
        for (int j = 0; j < ROWS / 16; j++)
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                unsigned fv[2];
                ldmatrix_transposed<2>(fv, vs + (j * 16 + lane % 16) * STRIDE + c * 8);
                mma_16x8x16(sum[c], p[j], fv);
            }
        __syncthreads();  // everyone has left this buffer
        if (BUFFERS == 1 && tile + 1 < tiles) load_keys(tile + 1);
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        weight[r] += __shfl_xor_sync(ALL_LANES, weight[r], 1);
        weight[r] += __shfl_xor_sync(ALL_LANES, weight[r], 2);
        const int s = s0 + warp * 16 + g + r * 8;
        if (s >= queries) continue;
        half* out = y + ((long long)b * queries + s) * row + n * D;  // y[b, s, n]
#pragma unroll
        for (int c = 0; c < D / 8; c++)
            *reinterpret_cast<__half2*>(out + c * 8 + t * 2) = __floats2half2_rn(sum[c][2 * r] / weight[r], sum[c][2 * r + 1] / weight[r]);
    }
}
