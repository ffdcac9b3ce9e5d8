// Mean and variance of parts, merged: what the norms from rung 2 on share.
#include "common.cuh"

struct Moments {
    float count, mean, squares;  // squares: the sum of (x - mean)^2
};

// One number more. Welford, Technometrics 1962.
__device__ __forceinline__ Moments with_value(const Moments& m, float x) {
    const float count = m.count + 1.0f, d = x - m.mean, mean = m.mean + d / count;
    return {count, mean, m.squares + d * (x - mean)};
}

// The moments of two parts together. Chan, Golub & LeVeque, 1979. An empty part changes nothing.
__device__ __forceinline__ Moments merged(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float d = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + d * share, a.squares + b.squares + d * d * a.count * share};
}

// Every lane gets the moments of all 32.
__device__ __forceinline__ Moments warp_moments(Moments m) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        const Moments other = {__shfl_xor_sync(ALL_LANES, m.count, step), __shfl_xor_sync(ALL_LANES, m.mean, step),
                               __shfl_xor_sync(ALL_LANES, m.squares, step)};
        m = merged(m, other);
    }
    return m;
}
