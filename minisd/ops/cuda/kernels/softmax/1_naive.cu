// Idea:           one thread for one row: the maximum, the sum, the quotients, in three loops.
// Differs:        the lowest rung.
// Work split:     grid rows / 128, block 128; no shared memory.
// Global traffic: 3 reads + 1 write, 4 rows n sizeof(T) bytes; the lanes of a warp read addresses that lie n elements apart.
// Limits:         T half or float; any n.
// Numerics:       float; the largest number of the row is subtracted before exp; one serial sum.
// Source:         the definition.
#include "common.cuh"

// x, y [rows, n]
template <typename T>
__global__ void __launch_bounds__(128) softmax_naive(const T* __restrict__ x, T* __restrict__ y, int rows, int n) {
    const int row = blockIdx.x * 128 + threadIdx.x;
    if (row >= rows) return;
    x += (long long)row * n, y += (long long)row * n;
    float largest = -INFINITY, sum = 0.0f;
    for (int i = 0; i < n; i++) largest = fmaxf(largest, to_float(x[i]));
    for (int i = 0; i < n; i++) sum += expf(to_float(x[i]) - largest);
    for (int i = 0; i < n; i++) y[i] = from_float<T>(expf(to_float(x[i]) - largest) / sum);
}
