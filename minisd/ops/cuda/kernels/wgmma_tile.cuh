// The block tile that the wgmma rungs of gemm and conv2d share: C [128, BN] = A [128, K] B [K, BN], with K in slices of 64.
// One thread asks TMA for slices; two warpgroups multiply them, 64 rows each. Between them is a ring of STAGES buffers, each with two
// barriers: `full` completes a phase when a slice has landed, `empty` when all eight warps have left the buffer. Slice s is the
// (s / STAGES)-th of its buffer, so it is phase s / STAGES of both barriers that concerns it. A block may make one tile after another: the
// count of slices goes on, and while a result is stored, the first slices of the next tile are on their way.
// BN = 160 makes one block for nearly every multiprocessor in the UNet, and has four buffers. BN = 128 is for the decoder's many tiles: with
// three buffers two blocks fit on a multiprocessor, and one multiplies while the other stores.
#include "common.cuh"
#include "hopper.cuh"

// CLUSTER blocks that lie below each other in C need the same B: each fetches its share of it and sends it to all. A buffer is then empty
// when the warps of all blocks have left it, for all may write to it.

// B_BY_N: B's rows in memory are k (as in a convolution's weights), else they are n (a linear layer's).
template <int BN_, bool B_BY_N, int CLUSTER> struct WgmmaTile {
    static constexpr int BM = 128, BN = BN_, BK = 64, STAGES = BN == 128 ? 3 : 4, CONSUMERS = 256, THREADS = CONSUMERS + WARP;
    static constexpr int A_SIZE = BM * BK, B_SIZE = BN * BK, B_SHARE = B_SIZE / CLUSTER, STAGE = A_SIZE + B_SIZE;  // in halves
    static constexpr int K_SHARE = BK / CLUSTER, N_SHARE = BN / CLUSTER;  // a block's share of B: so many rows of k, or of n

    float c[BN / 2];
    half* ring;
    Barrier *full, *empty;
    int begun = 0;  // slices, of this tile and those before

    // shared: 1024 bytes more than the ring and its barriers, to begin at a multiple of 1024.
    __device__ __forceinline__ WgmmaTile(char* shared) {
        ring = reinterpret_cast<half*>(shared + (1024 - shared_address(shared) % 1024));
        full = reinterpret_cast<Barrier*>(ring + STAGES * STAGE), empty = full + STAGES;
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) barrier_init(full + i, 1), barrier_init(empty + i, CLUSTER * CONSUMERS / WARP);
            barriers_are_made();
        }
        if constexpr (CLUSTER > 1) cluster_sync();
        else __syncthreads();
    }
    // Before a thread returns: the other blocks may still write to this one, and arrive here.
    __device__ __forceinline__ static void finish() {
        if constexpr (CLUSTER > 1) cluster_sync();
    }
    __device__ __forceinline__ static int rank() { return CLUSTER > 1 ? cluster_rank() : 0; }
    // A load of the share of B.
    template <class... C> __device__ __forceinline__ static void load_share(half* to, const TensorMap& map, Barrier* barrier, C... corner) {
        if constexpr (CLUSTER > 1) tma_load_to_all(to, map, barrier, (1 << CLUSTER) - 1, corner...);
        else tma_load(to, map, barrier, corner...);
    }

    // For one thread: load(slice, a, b, barrier) asks TMA for A [128, 64] by k and for this block's share of B.
    template <class Load> __device__ __forceinline__ void produce(int slices, Load load) {
#pragma unroll 1
        for (int s = 0; s < slices; s++, begun++) {
            const int i = begun % STAGES;
            if (begun >= STAGES) barrier_wait(empty + i, (begun / STAGES - 1) % 2);  // the slice before it in this buffer has been multiplied
            barrier_expect(full + i, STAGE * 2);
            load(s, ring + i * STAGE, ring + i * STAGE + A_SIZE + rank() * B_SHARE, full + i);
        }
    }

    // For the two warpgroups.
    __device__ __forceinline__ void consume(int slices) {
        const int rows = threadIdx.x / 128 * 64;
#pragma unroll
        for (int i = 0; i < BN / 2; i++) c[i] = 0.0f;
        keep(c);
#pragma unroll 1
        for (int s = 0; s < slices; s++, begun++) {
            const half *a = ring + begun % STAGES * STAGE + rows * BK, *b = ring + begun % STAGES * STAGE + A_SIZE;
            const Descriptor da = descriptor_by_k(a), db = B_BY_N ? descriptor_by_n(b, K_SHARE) : descriptor_by_k(b);
            barrier_wait(full + begun % STAGES, begun / STAGES % 2);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < BK; k += 16) {
                const int on = B_BY_N ? k / K_SHARE * B_SHARE * 2 + k % K_SHARE / 16 * NEXT_16_BY_N : k / 16 * NEXT_16_BY_K;
                wgmma<BN, B_BY_N>(c, further(da, k / 16 * NEXT_16_BY_K), further(db, on), true);
            }
            wgmma_commit();
            wgmma_wait<1>();  // the tensor cores have the next slice before the last one is let go
            if (s > 0) leave(begun - 1);
        }
        wgmma_wait<0>();
        keep(c);
        leave(begun - 1);
    }
    __device__ __forceinline__ void leave(int slice) {
        const int lane = threadIdx.x % WARP;
        if (CLUSTER == 1 && lane == 0) barrier_arrive(empty + slice % STAGES);
        if (CLUSTER > 1 && lane < CLUSTER) barrier_arrive_in(empty + slice % STAGES, lane);
    }

    // f(row, pairs) for every row that this thread holds a part of; pairs(g) calls g(column, C[row, column], C[row, column + 1]).
    template <class F> __device__ __forceinline__ void each_row(F f) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int h = 0; h < 2; h++)
            f(threadIdx.x / WARP * 16 + lane / 4 + h * 8, [&](auto g) {
#pragma unroll
                for (int j = 0; j < BN / 8; j++) g(j * 8 + lane % 4 * 2, c[4 * j + 2 * h], c[4 * j + 2 * h + 1]);
            });
    }
};

// Adds two neighbouring numbers of a row, stores two.
__device__ __forceinline__ void add_two(const half* p, float& v0, float& v1) {
    const float2 more = __half22float2(*reinterpret_cast<const __half2*>(p));
    v0 += more.x, v1 += more.y;
}
__device__ __forceinline__ void store_two(half* p, float v0, float v1) { *reinterpret_cast<__half2*>(p) = __floats2half2_rn(v0, v1); }
