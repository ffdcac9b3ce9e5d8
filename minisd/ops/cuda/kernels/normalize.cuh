// The last step of a group norm, and the activation that rides along.
#include "common.cuh"
#include "ptx.cuh"

// x / (1 + e^-x). For half results two approximate instructions are enough, an exponential and a reciprocal of 2 and 1 ulp of a float: with the
// exact ones there are 30 instructions for each number, more than memory leaves time for.
template <typename T> __device__ __forceinline__ float silu_for(float x) { return silu(x); }
template <> __device__ __forceinline__ float silu_for<half>(float x) { return x * reciprocal_fast(1.0f + exp2_fast(-1.442695041f * x)); }

// (v - shift - mean) scale + low, and SiLU of it.
template <typename T>
__device__ __forceinline__ void normalize(Vector<T>& v, const float* shift, const float* mean, const float* scale, const float* low, int use_silu) {
#pragma unroll
    for (int i = 0; i < Vector<T>::SIZE; i++) {
        const float n = (to_float(v.value[i]) - shift[i] - mean[i]) * scale[i] + low[i];
        v.value[i] = from_float<T>(use_silu ? silu_for<T>(n) : n);
    }
}
