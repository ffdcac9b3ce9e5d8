// Idea:           softmax without all scores: keep the largest so far and rescale what was summed when a larger one comes.
// Differs:        from rung 1: one warp for one query, no memory for scores, K and V in one pass.
// Work split:     grid (S / 4, N, B), block 128 = 4 warps; lane l holds elements l, l + 32, … of the head; no shared memory.
// Global traffic: K and V once for each query, 2 B N S T D sizeof(T) bytes asked for; 4 neighbouring queries share them in the L1 cache.
// Limits:         T half or float; D <= 32 COLUMNS, COLUMNS 2, 5 or 8; any number of keys.
// Numerics:       float; exp(s - m) with the running maximum m; one serial sum over the keys.
// Source:         Milakov & Gimelshein, arXiv:1805.02867; Rabe & Staats, arXiv:2112.05682.
#include "common.cuh"

// q, y [B, S, N, D]; k, v [B, T, N, D]
template <typename T, int COLUMNS>
__global__ void __launch_bounds__(128)
attention_online(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ y,
                 int N, int queries, int keys, int D, float scale, int causal) {
    const int s = blockIdx.x * 4 + threadIdx.x / WARP, n = blockIdx.y, b = blockIdx.z, lane = threadIdx.x % WARP;
    if (s >= queries) return;
    const long long row = (long long)N * D;
    const long long mine = ((long long)b * queries + s) * row + n * D;  // q[b, s, n]
    const long long others = (long long)b * keys * row + n * D;         // k[b, 0, n], v[b, 0, n]
    const int seen = causal ? keys - queries + s + 1 : keys;

    float query[COLUMNS], sum[COLUMNS];
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int d = lane + i * WARP;
        query[i] = d < D ? to_float(q[mine + d]) * scale : 0.0f, sum[i] = 0.0f;
    }
    float largest = -INFINITY, weight = 0.0f;
    for (int j = 0; j < seen; j++) {
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            const int d = lane + i * WARP;
            if (d < D) dot += query[i] * to_float(k[others + j * row + d]);
        }
        const float score = warp_sum(dot), before = largest;
        largest = fmaxf(largest, score);
        const float rescale = expf(before - largest), p = expf(score - largest);
        weight = weight * rescale + p;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            const int d = lane + i * WARP;
            if (d < D) sum[i] = sum[i] * rescale + p * to_float(v[others + j * row + d]);
        }
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int d = lane + i * WARP;
        if (d < D) y[mine + d] = from_float<T>(sum[i] / weight);
    }
}
