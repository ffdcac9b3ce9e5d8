// Helpers that more than one kernel uses. Accumulation is in float; storage is half or float.
#include <cuda_fp16.h>

#ifdef CUDASIM
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(sim::dynamic_shared())
#else
#define DYNAMIC_SHARED(T, name)                                      \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    T* name = reinterpret_cast<T*>(dynamic_shared)
#endif
#ifndef INFINITY  // NVRTC has no math.h
#define INFINITY __int_as_float(0x7f800000)
#endif
#define OPTIONAL  // marks a pointer that may be null; the launcher's check reads it

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half x) { return __half2float(x); }
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ half from_float<half>(float x) { return __float2half_rn(x); }

// 16 bytes of T at once: 4 floats or 8 halves. The address must be a multiple of 16.
template <typename T> struct alignas(16) Vector {
    static constexpr int SIZE = 16 / sizeof(T);
    T value[SIZE];
};
template <typename T> __device__ __forceinline__ Vector<T> load_vector(const T* p) {
    Vector<T> v;
    *reinterpret_cast<uint4*>(&v) = *reinterpret_cast<const uint4*>(p);
    return v;
}
template <typename T> __device__ __forceinline__ void store_vector(T* p, const Vector<T>& v) {
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&v);
}

// Every lane gets the sum, the maximum, of all 32.
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// x / (1 + e^-x); at x = -inf the quotient is -0, as it should be.
__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
// x Phi(x) by erfc, which keeps its digits where 1 + erf(x) would cancel.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * erfcf(-0.70710678118654752f * x); }
