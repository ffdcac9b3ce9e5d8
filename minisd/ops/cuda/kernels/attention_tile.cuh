// What the upper rungs of attention share: 16 MT queries of one warp against keys and values in shared memory.
// A row of shared memory is one key or value, D halves without padding. ldmatrix reads one 16-byte chunk of eight rows at once; they have to
// lie in the eight different groups of four banks. Chunk c of row r starts in group (D/8 r + c) mod 8: with D = 40 that is a different one
// for each of eight rows, with an even D/8 it is not. So c is stored at c ^ (r / (8/p) mod p), p the largest power of two in D/8.
#include "common.cuh"
#include "ptx.cuh"

constexpr float NEVER = -1.0e30f;  // a finite -infinity: NEVER - NEVER is 0, not NaN

// Where chunk c of row r begins, in halves.
template <int D> __device__ __forceinline__ unsigned chunk_of(unsigned r, unsigned c) {
    constexpr unsigned CHUNKS = D / 8, P = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
    return r * D + (c ^ (r / (8 / P) % P)) * 8;
}

// Brings tiles of ROWS rows of a head to shared memory. A thread keeps to one chunk of a row and takes every R-th row, so that the next address
// is an addition away; THREADS - R D/8 threads have nothing to do.
template <int D, int ROWS, int THREADS> struct RowLoader {
    static constexpr unsigned CHUNKS = D / 8, R = THREADS / CHUNKS;
    const half* head;
    const int step, rows;  // from one row to the next, in halves; rows of the head
    const unsigned r, c;   // this thread's first row of a tile, and its chunk

    __device__ __forceinline__ RowLoader(const half* head, int step, int rows)
        : head(head), step(step), rows(rows), r(threadIdx.x / CHUNKS), c(threadIdx.x % CHUNKS) {}

    // Asks for a tile; zeros behind the last row.
    __device__ __forceinline__ void ask(half* shared, int tile) const {
        const half* from = head + (long long)(tile * ROWS + (int)r) * step + c * 8;
        const int left = rows - tile * ROWS - (int)r;
#pragma unroll
        for (unsigned k = 0; k * R < ROWS; k++)
            if (r < R && ((k + 1) * R <= ROWS || r + k * R < ROWS))
                copy_async_16(shared + chunk_of<D>(r + k * R, c), from + (long long)(k * R) * step, (int)(k * R) < left);
    }
};

template <int D, int MT, int KEYS> struct QueryTile {
    static_assert(D % 8 == 0 && KEYS % 16 == 0, "whole fragments");
    static constexpr int WHOLE = D / 16, TAIL = D % 16 / 8;  // slices of Q K^T: of 16 columns, and one of 8 where D = 40

    unsigned q[MT][WHOLE][4], tail[MT][2];    // the queries, as left operands
    float score[MT][KEYS / 8][4];             // Q K^T; lane l has columns 2 (l % 4) and the next of rows l / 4 and l / 4 + 8
    unsigned p[MT][KEYS / 16][4];             // their exponentials, as left operands
    float sum[MT][D / 8][4];                  // P V so far
    float largest[MT][2], weight[MT][2];      // of the two rows: the largest score so far, the sum of this lane's exponentials
    int lane;

    __device__ __forceinline__ QueryTile() : lane(threadIdx.x % WARP) {}

    // Queries s0 … s0 + 16 MT - 1 from global memory to registers, zeros behind the last; nothing summed yet.
    __device__ __forceinline__ void begin(const half* head, long long step, int s0, int queries) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int s = s0 + m * 16 + lane / 4 + r * 8;
                const half* row = head + (s < queries ? s : 0) * step + lane % 4 * 2;
                const auto pair = [&](int d) { return s < queries ? *reinterpret_cast<const unsigned*>(row + d) : 0u; };
#pragma unroll
                for (int c = 0; c < WHOLE; c++) q[m][c][r] = pair(c * 16), q[m][c][r + 2] = pair(c * 16 + 8);
                if constexpr (TAIL) tail[m][r] = pair(WHOLE * 16);
                largest[m][r] = NEVER, weight[m][r] = 0.0f;
#pragma unroll
                for (int c = 0; c < D / 8; c++) sum[m][c][2 * r] = sum[m][c][2 * r + 1] = 0.0f;
            }
    }

    // score = Q K^T
    __device__ __forceinline__ void meet(const half* ks) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j += 2) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[m][j][i] = score[m][j + 1][i] = 0.0f;
#pragma unroll
            for (int c = 0; c < WHOLE; c++) {
                unsigned fk[2][2];
                ldmatrix<4>(fk[0], ks + chunk_of<D>(j * 8 + lane % 8 + lane / 16 * 8, c * 2 + lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < MT; m++) mma_16x8x16(score[m][j], q[m][c], fk[0]), mma_16x8x16(score[m][j + 1], q[m][c], fk[1]);
            }
            if constexpr (TAIL) {
                unsigned fk[2];
                ldmatrix<2>(fk, ks + chunk_of<D>(j * 8 + lane % 16, WHOLE * 2));
#pragma unroll
                for (int m = 0; m < MT; m++) mma_16x8x8(score[m][j], tail[m], fk[0]), mma_16x8x8(score[m][j + 1], tail[m], fk[1]);
            }
        }
    }

    // Hides what a query must not see: query s sees keys 0 … min(keys, ahead + s) - 1; the first score is key j0's, the first row query s0.
    // The first SEEN scores are known to be seen by all.
    template <int SEEN> __device__ __forceinline__ void hide(int j0, int s0, int keys, int ahead) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int j = SEEN / 8; j < KEYS / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int limit = min(keys, ahead + s0 + m * 16 + lane / 4 + i / 2 * 8);
                    if (j0 + j * 8 + lane % 4 * 2 + i % 2 >= limit) score[m][j][i] = NEVER;
                }
    }

    // p = 2^(scale (score - largest)), largest brought up to date. ONLY: these are all keys, there is nothing to rescale.
    template <bool ONLY> __device__ __forceinline__ void weigh(float scale) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float highest = largest[m][r];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) highest = fmaxf(highest, fmaxf(score[m][j][2 * r], score[m][j][2 * r + 1]));
                highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));  // the four lanes of a row agree
                highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
                if constexpr (!ONLY) {
                    const float rescale = exp2_fast((largest[m][r] - highest) * scale);
                    weight[m][r] *= rescale;
#pragma unroll
                    for (int c = 0; c < D / 8; c++) sum[m][c][2 * r] *= rescale, sum[m][c][2 * r + 1] *= rescale;
                }
                largest[m][r] = highest;
                const float base = highest * scale;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
                    const float e0 = exp2_fast(fmaf(score[m][j][2 * r], scale, -base)), e1 = exp2_fast(fmaf(score[m][j][2 * r + 1], scale, -base));
                    const __half2 pair = __floats2half2_rn(e0, e1);
                    p[m][j / 2][j % 2 * 2 + r] = *reinterpret_cast<const unsigned*>(&pair);
                    weight[m][r] += e0 + e1;
                }
            }
    }

    // sum += P V
    __device__ __forceinline__ void gather(const half* vs) {
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
            for (int c = 0; c < D / 8; c += 2) {  // two neighbouring fragments of 8 columns by one instruction, the odd last one alone
                unsigned fv[2][2];
                if (c + 1 < D / 8) ldmatrix_transposed<4>(fv[0], vs + chunk_of<D>(j * 16 + lane % 16, c + lane / 16));
                else ldmatrix_transposed<2>(fv[0], vs + chunk_of<D>(j * 16 + lane % 16, c));
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma_16x8x16(sum[m][c], p[m][j], fv[0]);
                    if (c + 1 < D / 8) mma_16x8x16(sum[m][c + 1], p[m][j], fv[1]);
                }
            }
    }

    // y = sum / weight
    __device__ __forceinline__ void end(half* head, long long step, int s0, int queries) {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float whole = weight[m][r];
                whole += __shfl_xor_sync(ALL_LANES, whole, 1);
                whole += __shfl_xor_sync(ALL_LANES, whole, 2);
                const float inverse = 1.0f / whole;
                const int s = s0 + m * 16 + lane / 4 + r * 8;
                if (s >= queries) continue;
#pragma unroll
                for (int c = 0; c < D / 8; c++)
                    *reinterpret_cast<__half2*>(head + s * step + c * 8 + lane % 4 * 2) =
                        __floats2half2_rn(sum[m][c][2 * r] * inverse, sum[m][c][2 * r + 1] * inverse);
            }
    }
};
