// Idea:           one block for one query: all its scores into shared memory, softmax there, then the sum over the values.
// Differs:        the lowest rung.
// Work split:     grid (S, N, B), block 128; 4 (T + 128) bytes of shared memory.
// Global traffic: K and V once for each query: 2 B N S T D sizeof(T) bytes asked for, B N S D written.
// Limits:         T half or float; T <= 24000 keys; any D.
// Numerics:       float; the largest score is subtracted before exp; each output is one serial sum over T, in runs of 64.
// Source:         Vaswani et al., arXiv:1706.03762, equation 1.
#include "common.cuh"

constexpr int NAIVE_THREADS = 128;

// The sum, or the maximum, of one number of each thread.
template <bool MAXIMUM> __device__ __forceinline__ float block_reduce(float x, float* shared) {
    const int t = threadIdx.x;
    __syncthreads();
    shared[t] = x;
    __syncthreads();
    for (int step = NAIVE_THREADS / 2; step > 0; step /= 2) {
        if (t < step) shared[t] = MAXIMUM ? fmaxf(shared[t], shared[t + step]) : shared[t] + shared[t + step];
        __syncthreads();
    }
    return shared[0];
}

// q, y [B, S, N, D]; k, v [B, T, N, D]
template <typename T>
__global__ void __launch_bounds__(NAIVE_THREADS)
attention_naive(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, T* __restrict__ y,
                int N, int queries, int keys, int D, float scale, int causal) {
    DYNAMIC_SHARED(float, shared);
    float* p = shared + NAIVE_THREADS;  // [keys]
    const int s = blockIdx.x, n = blockIdx.y, b = blockIdx.z, t = threadIdx.x;
    const long long row = (long long)N * D;                           // from one token to the next
    const T* query = q + ((long long)b * queries + s) * row + n * D;  // q[b, s, n]
    const long long others = (long long)b * keys * row + n * D;       // k[b, 0, n], v[b, 0, n]
    const int seen = causal ? keys - queries + s + 1 : keys;

    float largest = -INFINITY;
    for (int j = t; j < seen; j += NAIVE_THREADS) {
        float dot = 0.0f;
        for (int d = 0; d < D; d++) dot += to_float(query[d]) * to_float(k[others + j * row + d]);
        p[j] = dot * scale;
        largest = fmaxf(largest, p[j]);
    }
    largest = block_reduce<true>(largest, shared);
    float sum = 0.0f;
    for (int j = t; j < seen; j += NAIVE_THREADS) sum += p[j] = expf(p[j] - largest);
    sum = block_reduce<false>(sum, shared);

    for (int d = t; d < D; d += NAIVE_THREADS) {
        float total = 0.0f;
        for (int j0 = 0; j0 < seen; j0 += 64) {
            float run = 0.0f;
            for (int j = j0; j < min(seen, j0 + 64); j++) run += p[j] * to_float(v[others + j * row + d]);
            total += run;
        }
        y[((long long)b * queries + s) * row + n * D + d] = from_float<T>(total / sum);
    }
}
