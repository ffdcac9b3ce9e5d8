// The activation functions, chosen by number at compile time.
#include "common.cuh"

constexpr int SILU = 0, GELU = 1, QUICK_GELU = 2;

template <int FUNCTION> __device__ __forceinline__ float apply(float x) {
    if constexpr (FUNCTION == SILU) return silu(x);
    if constexpr (FUNCTION == GELU) return gelu(x);
    return x / (1.0f + expf(-1.702f * x));
}
