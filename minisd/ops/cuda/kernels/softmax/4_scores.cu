// Idea:           the softmax between two matrix products: scale, mask and causal order are applied while the scores pass, and the weights
//                 leave in the type that the second product multiplies.
// Differs:        from rung 3: rows of any length, read twice as in rung 2 (the second time from the L2 cache: the launcher makes no more
//                 scores at once than fit there); float in, T out; a mask that is broadcast by strides of zero.
// Work split:     grid rows / 4, block 128 = 4 warps, one for each row; no shared memory, no barrier.
// Global traffic: 2 reads + 1 write, rows keys (8 + sizeof(T)) bytes; + 2 rows keys sizeof(T) with a mask of its own for each row.
// Limits:         T half or float; any number of keys; every row sees a key.
// Numerics:       float; as rung 2.
// Source:         Milakov & Gimelshein, arXiv:1805.02867.
#include "common.cuh"

// scores, y [heads, queries, keys], heads = B N, the first query being number `first` of its head; mask [B, N, S, T] by its four steps.
// Query s sees the first min(keys, ahead + s) keys.
template <typename T>
__global__ void __launch_bounds__(128)
softmax_scores(const float* __restrict__ scores, const T* __restrict__ OPTIONAL mask, T* __restrict__ y, int heads, int queries, int keys, int N,
               int first, int ahead, float scale, int image_step, int head_step, int query_step, int key_step) {
    const int row = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP, head = row / queries, s = first + row % queries;
    if (head >= heads) return;
    const int seen = min(keys, ahead + s);
    const float* x = scores + (long long)row * keys;
    const T* more = mask ? mask + (long long)(head / N) * image_step + (long long)(head % N) * head_step + (long long)s * query_step : nullptr;
    const auto value = [&](int j) { return more ? x[j] * scale + to_float(more[(long long)j * key_step]) : x[j] * scale; };

    float mine = -INFINITY, sum = 0.0f;
    for (int j = lane; j < seen; j += WARP) {
        const float v = value(j);
        if (v > mine) sum = sum * expf(mine - v) + 1.0f, mine = v;
        else if (v > -INFINITY) sum += expf(v - mine);
    }
    const float largest = warp_max(mine);
    sum = warp_sum(mine == -INFINITY ? 0.0f : sum * expf(mine - largest));
    y += (long long)row * keys;
    for (int j = lane; j < keys; j += WARP) y[j] = from_float<T>(j < seen ? expf(value(j) - largest) / sum : 0.0f);
}
