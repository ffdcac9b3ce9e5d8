// Idea:           one thread for one number.
// Differs:        the lowest rung.
// Work split:     grid n / 256, block 256; no shared memory.
// Global traffic: 1 read + 1 write, 2 n sizeof(T) bytes; GEGLU 2 reads + 1 write, 3 n sizeof(T), n its outputs.
// Limits:         T half or float; any n.
// Numerics:       float; GELU by erfc, which keeps its digits for negative x.
// Source:         Elfwing et al., arXiv:1702.03118; Hendrycks & Gimpel, arXiv:1606.08415; Shazeer, arXiv:2002.05202; OpenAI CLIP.
#include "functions.cuh"

// x [n] -> y [n]
template <typename T, int FUNCTION>
__global__ void __launch_bounds__(256) activation_naive(const T* __restrict__ x, T* __restrict__ y, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = from_float<T>(apply<FUNCTION>(to_float(x[i])));
}

// x [n / C, 2 C] -> y [n / C, C]: the first half of a row times GELU of the second
template <typename T>
__global__ void __launch_bounds__(256) geglu_naive(const T* __restrict__ x, T* __restrict__ y, int n, int C) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    const T* at = x + (long long)(i / C) * 2 * C + i % C;
    y[i] = from_float<T>(to_float(at[0]) * gelu(to_float(at[C])));
}
