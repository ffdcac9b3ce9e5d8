// Idea:           a thread loads and stores 16 bytes at once: an eighth of the instructions in half, a quarter in float.
// Differs:        from rung 1: V = 16 / sizeof(T) numbers a thread; the ragged end one by one.
// Work split:     grid n / (256 V), block 256; no shared memory.
// Global traffic: as rung 1.
// Limits:         T half or float; any n, GEGLU: C a multiple of V; addresses multiples of 16.
// Numerics:       as rung 1.
// Source:         CUDA Best Practices Guide, "Vectorized Memory Access".
#include "functions.cuh"

// x [n] -> y [n]
template <typename T, int FUNCTION>
__global__ void __launch_bounds__(256) activation_vectors(const T* __restrict__ x, T* __restrict__ y, int n) {
    constexpr int V = Vector<T>::SIZE;
    const int first = (blockIdx.x * 256 + threadIdx.x) * V;
    if (first + V <= n) {
        Vector<T> v = load_vector(x + first);
#pragma unroll
        for (int i = 0; i < V; i++) v.value[i] = from_float<T>(apply<FUNCTION>(to_float(v.value[i])));
        store_vector(y + first, v);
    } else {
        for (int i = first; i < n; i++) y[i] = from_float<T>(apply<FUNCTION>(to_float(x[i])));
    }
}

// x [n / C, 2 C] -> y [n / C, C]
template <typename T>
__global__ void __launch_bounds__(256) geglu_vectors(const T* __restrict__ x, T* __restrict__ y, int n, int C) {
    constexpr int V = Vector<T>::SIZE;
    const int first = (blockIdx.x * 256 + threadIdx.x) * V;
    if (first >= n) return;
    const T* at = x + (long long)(first / C) * 2 * C + first % C;
    Vector<T> h = load_vector(at);
    const Vector<T> gate = load_vector(at + C);
#pragma unroll
    for (int i = 0; i < V; i++) h.value[i] = from_float<T>(to_float(h.value[i]) * gelu(to_float(gate.value[i])));
    store_vector(y + first, h);
}
