// The block tile that the tensor-core rungs of gemm and conv2d share: C [BM, BN] += A [BM, K] B [K, BN], with K in slices of 32.
// Slices arrive in a ring of STAGES buffers by cp.async while older ones are multiplied; rows are padded by 16 bytes, so that the eight
// rows of an ldmatrix fall into different banks.
#include "common.cuh"
#include "ptx.cuh"

// A warp owns WM x WN of the tile. B_BY_K: B's rows in memory are k (as in a convolution's weights), else they are n (a linear layer's).
template <int BM_, int BN_, int WM, int WN, bool B_BY_K> struct MmaTile {
    static constexpr int BM = BM_, BN = BN_, BK = 32, STAGES = 4, PAD = 8, MT = WM / 16, NT = WN / 8;
    static constexpr int THREADS = BM / WM * (BN / WN) * WARP;
    static constexpr int A_STRIDE = BK + PAD, B_STRIDE = (B_BY_K ? BN : BK) + PAD;
    static constexpr int A_SIZE = BM * A_STRIDE, B_SIZE = (B_BY_K ? BK : BN) * B_STRIDE;  // in halves
    static constexpr int A_CHUNKS = BM * BK / 8, B_CHUNKS = BK * BN / 8;                  // of 8 halves, 16 bytes

    float c[MT][NT][4];
    int row0, col0, lane;  // of this warp in the tile

    __device__ __forceinline__ MmaTile() {
        const int warp = threadIdx.x / WARP;
        row0 = warp % (BM / WM) * WM, col0 = warp / (BM / WM) * WN, lane = threadIdx.x % WARP;
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int r = 0; r < 4; r++) c[i][j][r] = 0.0f;
    }

    // Where chunk i of a slice lies in shared memory: A by rows; B by rows of k or of n.
    __device__ __forceinline__ static half* a_chunk(half* stage, int i) { return stage + i / (BK / 8) * A_STRIDE + i % (BK / 8) * 8; }
    __device__ __forceinline__ static half* b_chunk(half* stage, int i) {
        constexpr int ROW = (B_BY_K ? BN : BK) / 8;
        return stage + A_SIZE + i / ROW * B_STRIDE + i % ROW * 8;
    }

    // Multiplies one slice.
    __device__ __forceinline__ void multiply(const half* stage) {
        const half *a = stage, *b = stage + A_SIZE;
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            unsigned fa[MT][4], fb[NT + 1][2];
#pragma unroll
            for (int i = 0; i < MT; i++) ldmatrix<4>(fa[i], a + (row0 + i * 16 + lane % 16) * A_STRIDE + k + lane / 16 * 8);
#pragma unroll
            for (int j = 0; j < NT; j += 2) {  // two neighbouring 8-column fragments by one instruction, the odd last one alone
                const int n = col0 + j * 8;
                if constexpr (B_BY_K) {
                    const half* at = b + (k + lane % 16) * B_STRIDE + n;
                    if (j + 1 < NT) ldmatrix_transposed<4>(fb[j], at + lane / 16 * 8);
                    else ldmatrix_transposed<2>(fb[j], at);
                } else {
                    const half* at = b + k + lane / 8 % 2 * 8;
                    if (j + 1 < NT) ldmatrix<4>(fb[j], at + (n + lane % 8 + lane / 16 * 8) * B_STRIDE);
                    else ldmatrix<2>(fb[j], at + (n + lane % 8) * B_STRIDE);
                }
            }
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) mma_16x8x16(c[i][j], fa[i], fb[j]);
        }
    }

    // All slices: load(slice, stage) asks for one, in order, and need not wait for it.
    template <class Load> __device__ __forceinline__ void run(half* shared, int slices, Load load) {
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; s++) {
            if (s < slices) load(s, shared + s * (A_SIZE + B_SIZE));
            copy_commit();
        }
#pragma unroll 1
        for (int s = 0; s < slices; s++) {
            copy_wait<STAGES - 2>();
            __syncthreads();  // slice s is here for everyone, and everyone has left slice s - 1, whose buffer is filled next
            const int next = s + STAGES - 1;
            if (next < slices) load(next, shared + next % STAGES * (A_SIZE + B_SIZE));
            copy_commit();
            multiply(shared + s % STAGES * (A_SIZE + B_SIZE));
        }
    }

    // f(row, pairs) for every row that this thread holds a part of; pairs(g) calls g(column, C[row, column], C[row, column + 1]).
    template <class F> __device__ __forceinline__ void each_row(F f) {
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                f(row0 + i * 16 + lane / 4 + h * 8, [&](auto g) {
#pragma unroll
                    for (int j = 0; j < NT; j++) g(col0 + j * 8 + lane % 4 * 2, c[i][j][2 * h], c[i][j][2 * h + 1]);
                });
    }
};

// Two neighbouring numbers of a row of N, columns n and n + 1, n even. EVEN: N is known to be even; else the last pair may be a single.
template <bool EVEN> __device__ __forceinline__ void add_pair(const half* row, int n, int N, float& v0, float& v1) {
    if constexpr (EVEN) {
        const float2 more = __half22float2(*reinterpret_cast<const __half2*>(row + n));
        v0 += more.x, v1 += more.y;
    } else {
        v0 += to_float(row[n]);
        if (n + 1 < N) v1 += to_float(row[n + 1]);
    }
}
template <bool EVEN> __device__ __forceinline__ void store_pair(half* row, int n, int N, float v0, float v1) {
    if constexpr (EVEN) {
        *reinterpret_cast<__half2*>(row + n) = __floats2half2_rn(v0, v1);
    } else {
        row[n] = __float2half_rn(v0);
        if (n + 1 < N) row[n + 1] = __float2half_rn(v1);
    }
}
