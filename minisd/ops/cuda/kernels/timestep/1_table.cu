// Idea:           one thread for one sine or cosine.
// Differs:        the lowest rung.
// Work split:     grid B dim / 256, block 256; no shared memory.
// Global traffic: B dim sizeof(T) bytes written.
// Limits:         T half or float; any B, dim; an odd width ends in a zero.
// Numerics:       exponent, frequency and phase are rounded to float where torch rounds them (t = 1000 magnifies it to 6e-5); exp, sin and
//                 cos in double. A few hundred numbers a step: their speed does not matter.
// Source:         Ho et al., arXiv:2006.11239; diffusers get_timestep_embedding.
#include "common.cuh"

// t [B] -> y [B, dim]; shift: freq_shift; cosines: whether they come first
template <typename T>
__global__ void __launch_bounds__(256)
timestep_table(const double* __restrict__ t, T* __restrict__ y, int B, int dim, float shift, int cosines) {
    const int i = blockIdx.x * 256 + threadIdx.x, column = i % dim, width = dim / 2;
    if (i >= B * dim) return;
    if (column >= 2 * width) {
        y[i] = from_float<T>(0.0f);
        return;
    }
    const float exponent = -9.210340371976184f * (float)(column % width) / ((float)width - shift);  // -ln 10000
    const float frequency = (float)exp((double)exponent), phase = (float)t[i / dim] * frequency;
    const bool cosine = (column < width) == (cosines != 0);
    const double value = cosine ? cos((double)phase) : sin((double)phase);
    y[i] = from_float<T>((float)value);
}
