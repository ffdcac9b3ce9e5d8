// All inline PTX of the project: each instruction with its body for the device and, for the simulator, a call that does what the
// PTX ISA says it does (tests/cudasim/cudasim.h). Fragments of mma.m16n8k16, lane l, g = l / 4, t = l % 4:
//     A [16, 16]: a0 = A[g, 2t..], a1 = A[g + 8, 2t..], a2 = A[g, 2t + 8..], a3 = A[g + 8, 2t + 8..]     two halves each
//     B [16, 8]:  b0 = B[2t.., g], b1 = B[2t + 8.., g]
//     C [16, 8]:  c0, c1 = C[g, 2t..], c2, c3 = C[g + 8, 2t..]                                             one float each
// mma.m16n8k8 has the first half of A's and B's registers: a0, a1 and b0.
#include <cuda_fp16.h>

#ifdef CUDASIM

inline void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) { sim::mma_16x8x16(c, a, b); }
inline void mma_16x8x8(float c[4], const unsigned a[2], unsigned b) { sim::mma_16x8x8(c, a, b); }
template <int N> inline void ldmatrix(unsigned* r, const half* row) { sim::ldmatrix(r, N, false, row); }
template <int N> inline void ldmatrix_transposed(unsigned* r, const half* row) { sim::ldmatrix(r, N, true, row); }
inline void copy_async_16(half* shared, const half* global, bool valid) { sim::copy_async(shared, global, 16, valid ? 16 : 0); }
inline void copy_commit() { sim::copy_commit(); }
template <int PENDING> inline void copy_wait() { sim::copy_wait(PENDING); }
inline float exp2_fast(float x) { return exp2f(x); }
inline float reciprocal_fast(float x) { return 1.0f / x; }

#else

__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// c += a b: sixteen products for each of 16 x 8 numbers, by one warp.
__device__ __forceinline__ void mma_16x8x16(float c[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with eight products for each number.
__device__ __forceinline__ void mma_16x8x8(float c[4], const unsigned a[2], unsigned b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

// N matrices of 8 x 8 halves: lane 8 i + j names row j of matrix i; r[i] holds row l / 4, columns 2 (l % 4) and the next.
template <int N> __device__ __forceinline__ void ldmatrix(unsigned* r, const half* row) {
    static_assert(N == 2 || N == 4, "ldmatrix loads 2 or 4 matrices here");
    if constexpr (N == 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

// The same with rows and columns of each matrix exchanged.
template <int N> __device__ __forceinline__ void ldmatrix_transposed(unsigned* r, const half* row) {
    static_assert(N == 2 || N == 4, "ldmatrix loads 2 or 4 matrices here");
    if constexpr (N == 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

// 16 bytes from global to shared memory without a register; zeros if not valid (then `global` is not read). Arrives by copy_wait.
__device__ __forceinline__ void copy_async_16(half* shared, const half* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All groups but the last PENDING have arrived, for this thread; a barrier makes them visible to the others.
template <int PENDING> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// 2^x by one instruction, 2 ulp; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x by one instruction, 1 ulp; 0 for infinity, infinity for subnormal numbers.
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
