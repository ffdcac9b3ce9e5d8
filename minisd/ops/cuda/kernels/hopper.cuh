// Hopper's own instructions, compute capability 9.0 (sm_90a) and no other: barriers in shared memory (mbarrier), the copy engine (TMA),
// and products of a warpgroup, four warps (wgmma). Each with its body for the device and, for the simulator, a call that does what the
// PTX ISA says (tests/cudasim/cudasim_hopper.h). docs/kernels/hopper.md shows how they work together.
//
// Operands in shared memory lie in blocks as TMA writes them, swizzled: in rows of 128 bytes, bits 4-6 of an address are exchanged for
// their exclusive or with bits 7-9; in rows of 64 bytes, bits 4-5 for theirs with bits 7-8. So eight rows of 16 bytes below each other
// are in different banks. The two layouts that are used here (halves, a product is 64 x N += 64 x 16 times 16 x N):
//     by k: a row is 64 k of one m or n, 128 bytes; blocks [rows][64 k] begin at multiples of 1024 bytes
//     by n: a row is 32 n of one k,      64 bytes; blocks [k][32 n] follow each other, at multiples of 512 bytes
//
// The accumulator of m64nNk16, thread t of the warpgroup, lane l = t % 32: d[4 j + i] = D[16 (t / 32) + l / 4 + 8 (i / 2), 8 j + 2 (l % 4) + i % 2].
// A from registers: thread t holds what lane l of warp t / 32 holds of mma.m16n8k16 (ptx.cuh).
#include "ptx.cuh"

struct Barrier {
    unsigned long long state;
};
using Descriptor = unsigned long long;  // of an operand in shared memory

#ifdef CUDASIM

using TensorMap = sim::TensorMap;
inline unsigned shared_address(const void* p) { return sim::shared_address(p); }
inline void barrier_init(Barrier* b, int arrivals) { sim::barrier_init(&b->state, arrivals); }
inline void barriers_are_made() { sim::barriers_are_made(); }
inline void barrier_expect(Barrier* b, int bytes) { sim::barrier_expect(&b->state, bytes); }
inline void barrier_arrive(Barrier* b) { sim::barrier_arrive(&b->state); }
inline void barrier_wait(Barrier* b, int parity) { sim::barrier_wait(&b->state, parity); }
inline void prefetch_map(const TensorMap&) {}
template <class... C> inline void tma_load(half* shared, const TensorMap& map, Barrier* b, C... c) {
    sim::tma_load(shared, map, &b->state, {c...});
}
template <class... C> inline void tma_load_to_all(half* shared, const TensorMap& map, Barrier* b, unsigned blocks, C... c) {
    sim::tma_load_to_all(shared, map, &b->state, blocks, {c...});
}
inline int cluster_rank() { return sim::cluster_rank(); }
inline void cluster_sync() { sim::cluster_sync(); }
inline void barrier_arrive_in(Barrier* b, int rank) { sim::barrier_arrive_in(&b->state, rank); }
template <int N, bool B_BY_N> inline void wgmma(float* d, Descriptor a, Descriptor b, bool add) { sim::wgmma(d, N, a, nullptr, b, B_BY_N, add); }
template <int N, bool B_BY_N> inline void wgmma(float* d, const unsigned* a, Descriptor b, bool add) { sim::wgmma(d, N, 0, a, b, B_BY_N, add); }
inline void wgmma_fence() { sim::wgmma_fence(); }
inline void wgmma_commit() { sim::wgmma_commit(); }
template <int PENDING> inline void wgmma_wait() { sim::wgmma_wait(PENDING); }
template <class T, int N> inline void keep(T (&)[N]) {}
template <int N> inline void take_registers() {}
template <int N> inline void give_registers() {}

#else

struct alignas(64) TensorMap {  // CUtensorMap of cuda.h, made by the driver: minisd/ops/cuda/tensor_map.py
    unsigned long long opaque[16];
};

// A barrier completes a phase when `arrivals` threads have arrived and all bytes that they announced have landed; then it begins the
// next. barrier_wait(b, p) returns when the current phase is not of parity p: phase 0 is over for p = 0, before it for p = 1.
__device__ __forceinline__ void barrier_init(Barrier* b, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}
// Makes the thread's new barriers known to the copy engine; a __syncthreads() makes them known to the other threads.
__device__ __forceinline__ void barriers_are_made() {
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
}
// Arrives, and announces bytes that TMA will bring in this phase.
__device__ __forceinline__ void barrier_expect(Barrier* b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* b) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void barrier_wait(Barrier* b, int parity) {
    asm volatile("{ .reg .pred p; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @p bra DONE; bra AGAIN; DONE: }" ::
                 "r"(shared_address(b)), "r"(parity) : "memory");
}

// The map itself is on its way before the first box that needs it.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// One box of a tensor, its corner at c0 (the innermost axis), c1, …: lands in shared memory some time before b completes its phase.
// Elements outside of the tensor are zeros, and count as bytes that landed.
#define TMA_LOAD(RANK, TO, CORNER, REST, ...)                                                                                                \
    asm volatile("cp.async.bulk.tensor." RANK ".shared::cluster.global.mbarrier::complete_tx::bytes" TO " [%0], [%1, {" CORNER "}], [%2]" REST \
                 ";" ::"r"(shared_address(shared)), "l"(&map), "r"(shared_address(b)), __VA_ARGS__ : "memory")
__device__ __forceinline__ void tma_load(half* shared, const TensorMap& map, Barrier* b, int c0, int c1) {
    TMA_LOAD("2d", "", "%3, %4", "", "r"(c0), "r"(c1));
}
__device__ __forceinline__ void tma_load(half* shared, const TensorMap& map, Barrier* b, int c0, int c1, int c2, int c3) {
    TMA_LOAD("4d", "", "%3, %4, %5, %6", "", "r"(c0), "r"(c1), "r"(c2), "r"(c3));
}

// Clusters: neighbouring blocks along x that run at the same time, each on a multiprocessor, and reach into each other's shared memory.
// One box to the same place in every block whose bit is set, where the barrier at the same place counts it: fetched once for all.
__device__ __forceinline__ void tma_load_to_all(half* shared, const TensorMap& map, Barrier* b, unsigned blocks, int c0, int c1) {
    TMA_LOAD("2d", ".multicast::cluster", "%3, %4", ", %5", "r"(c0), "r"(c1), "h"((unsigned short)blocks));
}
__device__ __forceinline__ void tma_load_to_all(half* shared, const TensorMap& map, Barrier* b, unsigned blocks, int c0, int c1, int c2, int c3) {
    TMA_LOAD("4d", ".multicast::cluster", "%3, %4, %5, %6", ", %7", "r"(c0), "r"(c1), "r"(c2), "r"(c3), "h"((unsigned short)blocks));
}
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
    return rank;
}
// For all threads of the cluster that have not returned; the lanes of a warp meet first, for the barrier counts warps. A block must not end
// while another may still reach into it.
__device__ __forceinline__ void cluster_sync() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Arrives at the barrier at the same place in another block, or in this one.
__device__ __forceinline__ void barrier_arrive_in(Barrier* b, int rank) {
    asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there]; }" ::
                 "r"(shared_address(b)), "r"(rank) : "memory");
}

#define D32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D48 D32 "," "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define D64 D48 "," "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define D80 D64 "," "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define F32 \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define F48 F32, \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define F64 F48, \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define F80 F64, \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), \
    "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])

// d += A B, or d = A B where not `add`: begun, by all four warps; d, and A in registers, are not to be touched until it is waited for.
#define WGMMA_SHARED(N, D, F, A, B, ADD, BY_N)                                                                                        \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" N "k16.f32.f16.f16 {" D "}, " A ", " B \
                 ", p, 1, 1, 0, " BY_N "; }" : F : "l"(a), "l"(b), "r"((int)add), "n"((int)B_BY_N))
template <int N, bool B_BY_N> __device__ __forceinline__ void wgmma(float* d, Descriptor a, Descriptor b, bool add) {
    static_assert(N == 64 || N == 128 || N == 160, "a width that a kernel here uses");
    if constexpr (N == 64) WGMMA_SHARED("64", D32, F32, "%32", "%33", "%34", "%35");
    if constexpr (N == 128) WGMMA_SHARED("128", D64, F64, "%64", "%65", "%66", "%67");
    if constexpr (N == 160) WGMMA_SHARED("160", D80, F80, "%80", "%81", "%82", "%83");
}
#define WGMMA_REGISTERS(N, D, F, A, B, ADD, BY_N)                                                                                     \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" N "k16.f32.f16.f16 {" D "}, {" A "}, " B \
                 ", p, 1, 1, " BY_N "; }" : F : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add), "n"((int)B_BY_N))
template <int N, bool B_BY_N> __device__ __forceinline__ void wgmma(float* d, const unsigned* a, Descriptor b, bool add) {
    static_assert(N == 64 || N == 96 || N == 160, "a width that a kernel here uses");
    if constexpr (N == 64) WGMMA_REGISTERS("64", D32, F32, "%32,%33,%34,%35", "%36", "%37", "%38");
    if constexpr (N == 96) WGMMA_REGISTERS("96", D48, F48, "%48,%49,%50,%51", "%52", "%53", "%54");
    if constexpr (N == 160) WGMMA_REGISTERS("160", D80, F80, "%80,%81,%82,%83", "%84", "%85", "%86");
}
// Before the first product of a group: registers that were written are ready to be read by it.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes a group of products.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All groups but the last PENDING are done.
template <int PENDING> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// The compiler takes the results of an asm statement to be there at once: no use of these registers is moved across this line.
template <int N> __device__ __forceinline__ void keep(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N> __device__ __forceinline__ void keep(unsigned (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}
// A warpgroup changes its threads' registers, to N: those that multiply take what the one that loads gives away.
template <int N> __device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

#endif

// Start, distance between blocks, between eight rows (all in units of 16 bytes), and the swizzle: 1 for rows of 128 bytes, 2 for 64.
__device__ __forceinline__ Descriptor descriptor(const void* start, int blocks, int rows, int swizzle) {
    return (shared_address(start) & 0x3FFFF) >> 4 | (Descriptor)(blocks >> 4) << 16 | (Descriptor)(rows >> 4) << 32 | (Descriptor)swizzle << 62;
}
__device__ __forceinline__ Descriptor descriptor_by_k(const half* rows) { return descriptor(rows, 16, 8 * 128, 1); }
// k_rows: of a block
__device__ __forceinline__ Descriptor descriptor_by_n(const half* rows, int k_rows) { return descriptor(rows, k_rows * 64, 8 * 64, 2); }
// The operand that begins so many bytes later.
__device__ __forceinline__ Descriptor further(Descriptor d, int bytes) { return d + (bytes >> 4); }
constexpr int NEXT_16_BY_K = 32, NEXT_16_BY_N = 16 * 64;  // bytes to the next 16 k of a block
