// Runs the text of CUDA kernels on the CPU: forced in front of a .cu file that g++ compiles. x86-64 Linux.
//
// The threads of a block, or of a cluster of blocks, are fibers on one OS thread; blocks, or clusters, follow one another. What a GPU
// leaves undefined is made to show:
//   - shared memory is NaN when a block begins; cp.async lands only at its wait, and its target is NaN until then
//   - a warp-wide instruction waits for every lane of its mask; lanes that meet in different instructions are reported
//   - a barrier waits for every thread that has not returned; threads at different barriers, and threads that wait for ever, are reported
//   - three thread orders (forward, backward, shuffled): without races their results are equal to the last bit
//   - shared memory ends at a page that cannot be touched, and so do the driver's buffers; g++'s sanitizer traps misaligned vectors,
//     indices beyond an array and integer overflow
// Hopper's barriers, copies and products are in cudasim_hopper.h.
// What it cannot see: bank conflicts, coalescing, memory order between blocks, and a wrong belief about a PTX layout.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_fp16.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <tuple>
#include <ucontext.h>
#include <unistd.h>
#include <utility>
#include <vector>
#include <vector_functions.h>

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __shared__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__ static thread_local  // thread_local only to gather all such arrays in one segment, which `poison_static_shared` finds
#define CUDASIM 1
#define NO_CHECKS __attribute__((no_sanitize("undefined")))

namespace sim {

struct Index { unsigned x, y, z; };
static Index thread_index, block_index, block_size, grid_size;

enum State : uint8_t { RUNNABLE, AT_COLLECTIVE, AT_BARRIER, AT_CONDITION, DONE };
using Collective = void (*)(void** lanes);  // lanes[i]: what lane i brought, null if it takes no part
using Condition = bool (*)(int thread);     // whether the thread that waits for it may go on

struct Fiber {
    void* stack_pointer;
    State state;
    Index index;
    unsigned mask;       // AT_COLLECTIVE: the lanes that take part
    Collective collective;
    void* brought;
    Condition condition;
    bool patient;
    const char* place;   // the name of the instruction it waits in
    int line;
};
struct Copy { char* shared; const char* global; int bytes, valid; };

constexpr size_t STACK = 64 << 10;
static std::vector<Fiber> fibers;
static char* stacks;
static size_t stack_count;
static void* scheduler_stack_pointer;
static int current;            // the fiber that runs, -1: the scheduler
static std::vector<std::vector<std::vector<Copy>>> copies;  // [thread][group]: cp.async under way
static char *shared_begin, *shared_end;  // of the block whose thread runs
static std::vector<char*> shared_of;     // [block of the cluster]
static size_t shared_bytes;
static int threads_per_block;
static Index first_block;  // of the cluster
static void (*body)(void**);
static void** body_arguments;
static unsigned random_state;
static char failure[1024];
static uintptr_t fault_address;

static void fail(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    if (!failure[0]) vsnprintf(failure, sizeof failure, format, rest);
    va_end(rest);
}

// ----- fibers: save the callee-saved registers, exchange the stacks --------------------------------------------------------------

extern "C" __attribute__((visibility("hidden"))) void cudasim_switch(void** save, void* load);
asm(R"(.text
.hidden cudasim_switch
.type cudasim_switch, @function
cudasim_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");

static void leave(State state) {
    fibers[current].state = state;
    cudasim_switch(&fibers[current].stack_pointer, scheduler_stack_pointer);
}
static void fiber_entry() {
    body(body_arguments);
    leave(DONE);
    abort();
}
static int block_of(int thread) { return thread / threads_per_block; }
static void enter_block(int rank) {
    block_index = first_block, block_index.x += rank;
    shared_begin = shared_of[rank], shared_end = shared_begin + shared_bytes;
}
static void resume(int i) {
    current = i;
    thread_index = fibers[i].index;
    enter_block(block_of(i));
    cudasim_switch(&scheduler_stack_pointer, fibers[i].stack_pointer);
    current = -1;
}
static void begin_hopper(unsigned threads), end_hopper(), describe_barriers(char* text, size_t room);  // cudasim_hopper.h
static void make_fibers(unsigned count) {
    if (stack_count < count) {
        if (stacks) munmap(stacks, stack_count * STACK);
        stacks = (char*)mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack_count = count;
        for (unsigned i = 0; i < count; i++) mprotect(stacks + i * STACK, 4096, PROT_NONE);  // a stack that overflows is a fault
    }
    fibers.assign(count, Fiber{});
    copies.assign(count, {});
    begin_hopper(count);
    for (unsigned i = 0; i < count; i++) {
        const unsigned t = i % threads_per_block;
        fibers[i].index = {t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y)};
        void** top = (void**)(stacks + (i + 1) * STACK - 64);
        *--top = nullptr;
        *--top = (void*)fiber_entry;
        for (int k = 0; k < 6; k++) *--top = nullptr;
        fibers[i].stack_pointer = top;
    }
}

// ----- where threads wait for each other -----------------------------------------------------------------------------------------

static int lane() { return current & 31; }

static void collective(unsigned mask, const char* place, int line, Collective op, void* brought) {
    Fiber& f = fibers[current];
    f.mask = mask, f.place = place, f.line = line, f.collective = op, f.brought = brought;
    if (!(mask >> lane() & 1)) fail("thread %d calls %s, line %d, with a mask that does not name it", current, place, line);
    leave(AT_COLLECTIVE);
}
static void barrier(int line) {
    fibers[current].place = "__syncthreads", fibers[current].line = line;
    leave(AT_BARRIER);
}

// Runs a warp's collective once every lane of its mask that has not returned has arrived. True if any lane goes on.
static bool release_collectives(int first, int last) {
    bool released = false;
    for (int i = first; i < last; i++) {
        if (fibers[i].state != AT_COLLECTIVE) continue;
        void* lanes[32] = {};
        bool complete = true;
        for (int j = first; j < last; j++) {
            if (!(fibers[i].mask >> (j - first) & 1) || fibers[j].state == DONE) continue;
            complete &= fibers[j].state == AT_COLLECTIVE;
            if (fibers[j].state != AT_COLLECTIVE) continue;
            if (fibers[j].collective != fibers[i].collective || fibers[j].mask != fibers[i].mask)
                fail("divergent warp: thread %d is at %s, line %d, thread %d at %s, line %d", i, fibers[i].place, fibers[i].line, j,
                     fibers[j].place, fibers[j].line);
            lanes[j - first] = fibers[j].brought;
        }
        if (!complete || failure[0]) continue;
        fibers[i].collective(lanes);
        for (int j = first; j < last; j++)
            if (lanes[j - first]) fibers[j].state = RUNNABLE;
        released = true;
    }
    return released;
}

static unsigned random_below(unsigned n) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % n;
}
static void arrange(std::vector<int>& order, int n, int way) {
    order.resize(n);
    for (int i = 0; i < n; i++) order[i] = way == 1 ? n - 1 - i : i;
    if (way == 2)
        for (int i = n - 1; i > 0; i--) std::swap(order[i], order[random_below(i + 1)]);
}

// Waits until the condition is met. Conditions are looked at when no thread of the block can go on without them: as late as possible.
// Those of patient threads when the others are of no help either, and then one that was met releases the threads that share it, no more.
static void wait_for(Condition condition, const char* place, bool patient) {
    Fiber& f = fibers[current];
    f.place = place, f.line = 0, f.condition = condition, f.patient = patient;
    leave(AT_CONDITION);
}
static bool one_is_met;  // of the patient ones, in this round
static bool release_conditions(bool patient, const std::vector<int>& order) {
    bool released = false;
    one_is_met = false;
    for (int i : order) {
        Fiber& f = fibers[i];
        if (failure[0] || f.state != AT_CONDITION || f.patient != patient || !f.condition(i)) continue;
        f.state = RUNNABLE, released = true;
    }
    return released;
}

static void report_deadlock() {
    char list[256];
    size_t used = 0;
    const char* last = nullptr;
    int last_line = 0;
    for (size_t i = 0; i < fibers.size(); i++) {
        const Fiber& f = fibers[i];
        if (f.state == DONE || (f.place == last && f.line == last_line) || used > sizeof list - 48) continue;
        used += snprintf(list + used, sizeof list - used, " thread %zu at %s, line %d;", i, f.place, f.line);
        last = f.place, last_line = f.line;
    }
    char barriers[512] = "";
    describe_barriers(barriers, sizeof barriers);
    fail("deadlock:%s%s", list, barriers);
}

// A block's threads go on once all that have not returned are at its barrier. Returns how many have.
static int release_barrier(int begin, bool& progress) {
    int done = 0, waiting = 0;
    const Fiber* first = nullptr;
    for (int i = begin; i < begin + threads_per_block; i++) {
        done += fibers[i].state == DONE, waiting += fibers[i].state == AT_BARRIER;
        if (!first && fibers[i].state == AT_BARRIER) first = &fibers[i];
    }
    if (!waiting || waiting + done < threads_per_block) return done;
    for (int i = begin; i < begin + threads_per_block; i++) {
        Fiber& f = fibers[i];
        if (f.state != AT_BARRIER) continue;
        if (f.line != first->line)
            fail("divergent barrier: thread %d is at line %d, thread %d at line %d", int(first - &fibers[0]), first->line, i, f.line);
        f.state = RUNNABLE;
    }
    progress = true;
    return done;
}

static void run_block(int way) {
    const int count = (int)fibers.size(), warps = (count + 31) / 32;
    std::vector<int> warp_order, lane_order, thread_order;
    while (!failure[0]) {
        bool progress = false;
        arrange(warp_order, warps, way);
        for (int w : warp_order) {
            const int first = w * 32, last = std::min(count, first + 32);
            for (bool again = true; again && !failure[0];) {
                again = false;
                arrange(lane_order, last - first, way);
                for (int i : lane_order)
                    if (fibers[first + i].state == RUNNABLE && !failure[0]) resume(first + i), again = progress = true;
                if (!failure[0] && release_collectives(first, last)) again = progress = true;
                if (way == 2) break;  // the other warps go on before this one does
            }
        }
        if (!progress && !failure[0]) {
            arrange(thread_order, count, way);
            progress = release_conditions(false, thread_order) || release_conditions(true, thread_order);
        }
        int done = 0;
        for (int begin = 0; begin < count; begin += threads_per_block) done += release_barrier(begin, progress);
        if (done == count) return end_hopper();
        if (!progress && !failure[0]) report_deadlock();
    }
}

// ----- memory: poison and faults -------------------------------------------------------------------------------------------------

static thread_local char static_shared_anchor;  // so that the module has a segment of thread-local variables even without __shared__

static int poison_module(dl_phdr_info* info, size_t, void*) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        const char* begin = (const char*)info->dlpi_tls_data;
        if (part.p_type == PT_TLS && begin && begin <= &static_shared_anchor && &static_shared_anchor < begin + part.p_memsz) {
            memset(info->dlpi_tls_data, 0xFF, part.p_memsz);
            return 1;
        }
    }
    return 0;
}
static void poison_static_shared() {
    static_shared_anchor = 1;  // touched, so it is allocated
    dl_iterate_phdr(poison_module, nullptr);
}
static void* dynamic_shared() { return shared_begin; }

static void on_fault(int signal, siginfo_t* info, void* context) {
    if (current < 0) {  // not a kernel's fault
        ::signal(signal, SIG_DFL);
        return;
    }
    const bool write = ((ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2;
    fault_address = (uintptr_t)info->si_addr;
    if (signal == SIGILL)
        fail("undefined behaviour in thread %d of block (%u, %u, %u): a misaligned vector, an index beyond an array, or integer overflow",
             current, block_index.x, block_index.y, block_index.z);
    else
        fail("out of bounds: thread %d of block (%u, %u, %u) %s", current, block_index.x, block_index.y, block_index.z,
             write ? "writes" : "reads");
    leave(DONE);
}

struct FaultHandlers {
    struct sigaction saved[3];
    static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGILL};
    FaultHandlers() {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &saved[i]);
    }
    ~FaultHandlers() {
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &saved[i], nullptr);
    }
};

// ----- a launch ------------------------------------------------------------------------------------------------------------------

// size = grid x y z, block x y z, bytes of dynamic shared memory, blocks of a cluster (along x). The message is empty when all went well.
static void launch(const unsigned* size, int way, void (*kernel)(void**), void** arguments, char* message, uint64_t* address) {
    grid_size = {size[0], size[1], size[2]}, block_size = {size[3], size[4], size[5]};
    body = kernel, body_arguments = arguments, random_state = 12345, failure[0] = 0, fault_address = 0, current = -1;
    const unsigned cluster = size[7];
    threads_per_block = block_size.x * block_size.y * block_size.z, shared_bytes = size[6];
    if (grid_size.x % cluster || (cluster > 1 && threads_per_block % 32))
        fail("%u blocks of %d threads along x are no clusters of %u", grid_size.x, threads_per_block, cluster);
    const size_t page = 4096, bytes = (shared_bytes + 127) / 128 * 128, room = (bytes + page - 1) / page * page;
    char* memory = (char*)mmap(nullptr, cluster * (room + page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared_of.clear();
    for (unsigned rank = 0; rank < cluster; rank++) {
        char* begin = memory + rank * (room + page);
        mprotect(begin + room, page, PROT_NONE);
        shared_of.push_back(begin + room - bytes);
    }
    {
        FaultHandlers handlers;
        for (unsigned z = 0; z < grid_size.z && !failure[0]; z++)
            for (unsigned y = 0; y < grid_size.y && !failure[0]; y++)
                for (unsigned x = 0; x < grid_size.x && !failure[0]; x += cluster) {
                    first_block = {x, y, z};
                    enter_block(0);
                    poison_static_shared();
                    for (char* shared : shared_of) memset(shared, 0xFF, bytes);
                    make_fibers(cluster * threads_per_block);
                    run_block(way);
                }
    }
    munmap(memory, cluster * (room + page));
    strcpy(message, failure);
    *address = fault_address;
}

template <auto kernel, class... A, size_t... I> void unpack(void (*)(A...), void** p, std::index_sequence<I...>) { kernel(*(A*)p[I]...); }
template <auto kernel, class... A> void unpack(void (*f)(A...), void** p) { unpack<kernel>(f, p, std::index_sequence_for<A...>{}); }

// ----- warp-wide instructions ----------------------------------------------------------------------------------------------------

template <class T> struct Shuffle { T value; int from; };

template <class T> T shuffle(unsigned mask, T value, int from, const char* name, int line) {
    Shuffle<T> mine{value, from};
    collective(mask, name, line, [](void** lanes) {
        T result[32];
        memset((void*)result, 0xFF, sizeof result);  // a lane that takes no part has nothing to give
        for (int i = 0; i < 32; i++)
            if (lanes[i] && lanes[((Shuffle<T>*)lanes[i])->from]) result[i] = ((Shuffle<T>*)lanes[((Shuffle<T>*)lanes[i])->from])->value;
        for (int i = 0; i < 32; i++)
            if (lanes[i]) ((Shuffle<T>*)lanes[i])->value = result[i];
    }, &mine);
    return mine.value;
}

static float half_values[65536];
__attribute__((constructor)) static void fill_half_values() {
    for (int bits = 0; bits < 65536; bits++) {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        const float size = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
        half_values[bits] = bits >> 15 ? -size : size;
    }
}
static float half_of(unsigned pair, int which) { return half_values[pair >> (16 * which) & 0xFFFF]; }

struct Mma { float* c; const unsigned *a, *b; };
typedef float Row __attribute__((vector_size(32)));  // 8 floats

NO_CHECKS static void mma_of_a_warp(void** lanes) {
    float A[16][16];
    Row B[16], C[16];
    for (int l = 0; l < 32; l++) {
        const Mma& m = *(Mma*)lanes[l];
        const int g = l / 4, t = l % 4;
        for (int i = 0; i < 2; i++) {
            for (int half = 0; half < 4; half++) A[g + half % 2 * 8][2 * t + half / 2 * 8 + i] = half_of(m.a[half], i);
            for (int half = 0; half < 2; half++) B[2 * t + 8 * half + i][g] = half_of(m.b[half], i);
            for (int half = 0; half < 2; half++) C[g + 8 * half][2 * t + i] = m.c[2 * half + i];
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++) C[row] += A[row][k] * B[k];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) ((Mma*)lanes[l])->c[i] = C[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}
static void mma_16x8x16(float* c, const unsigned* a, const unsigned* b) {
    Mma mine{c, a, b};
    collective(~0u, "mma", 0, mma_of_a_warp, &mine);
}
static void mma_16x8x8(float* c, const unsigned* a, unsigned b) {  // the deeper one, with zeros for the eight columns that are missing
    const unsigned deeper_a[4] = {a[0], a[1], 0, 0}, deeper_b[2] = {b, 0};
    mma_16x8x16(c, deeper_a, deeper_b);
}

struct MatrixLoad { unsigned* r; int matrices; bool transposed; const half* row; };

NO_CHECKS static void ldmatrix_of_a_warp(void** lanes) {
    unsigned short matrix[8][8];
    for (int m = 0; m < ((MatrixLoad*)lanes[0])->matrices; m++) {
        for (int row = 0; row < 8; row++) memcpy(matrix[row], ((MatrixLoad*)lanes[8 * m + row])->row, 16);
        for (int l = 0; l < 32; l++) {
            const MatrixLoad& load = *(MatrixLoad*)lanes[l];
            const int g = l / 4, t = 2 * (l % 4);
            load.r[m] = load.transposed ? matrix[t][g] | (unsigned)matrix[t + 1][g] << 16 : matrix[g][t] | (unsigned)matrix[g][t + 1] << 16;
        }
    }
}
static void expect_in_shared(const void* p, const char* name) {
    if ((uintptr_t)p % 16) fail("%s: thread %d has an address that is no multiple of 16", name, current);
    if (p < shared_begin || p > shared_end - 16) fail("%s: thread %d leaves the dynamic shared memory", name, current);
    if (failure[0]) leave(DONE);
}
static void ldmatrix(unsigned* r, int matrices, bool transposed, const half* row) {
    if (lane() < 8 * matrices) expect_in_shared(row, "ldmatrix");  // the other lanes' addresses are not looked at
    MatrixLoad mine{r, matrices, transposed, row};
    collective(~0u, "ldmatrix", 0, ldmatrix_of_a_warp, &mine);
}

// ----- cp.async ------------------------------------------------------------------------------------------------------------------

static std::vector<std::vector<Copy>>& groups() {
    auto& mine = copies[current];
    if (mine.empty()) mine.emplace_back();
    return mine;
}
static void copy_async(void* shared, const void* global, int bytes, int valid) {
    expect_in_shared(shared, "cp.async");
    if (valid && (uintptr_t)global % 16) fail("cp.async: thread %d reads from an address that is no multiple of 16", current), leave(DONE);
    memset(shared, 0xFF, bytes);
    groups().back().push_back({(char*)shared, (const char*)global, bytes, valid});
}
static void copy_commit() { groups().emplace_back(); }
static void copy_wait(int pending) {
    auto& mine = groups();
    const int arrived = (int)mine.size() - 1 - pending;
    for (int g = 0; g < arrived; g++)
        for (const Copy& c : mine[g]) memset(c.shared, 0, c.bytes), memcpy(c.shared, c.global, c.valid);
    if (arrived > 0) mine.erase(mine.begin(), mine.begin() + arrived);
}

}  // namespace sim

#define threadIdx sim::thread_index
#define blockIdx sim::block_index
#define blockDim sim::block_size
#define gridDim sim::grid_size
#define __syncthreads() sim::barrier(__LINE__)
#define __syncwarp(...) sim::collective(~0u, "__syncwarp", __LINE__, [](void**) {}, (void*)sim::failure)
#define __shfl_sync(mask, value, from) sim::shuffle(mask, value, (from) & 31, "__shfl_sync", __LINE__)
#define __shfl_xor_sync(mask, value, with) sim::shuffle(mask, value, sim::lane() ^ (with), "__shfl_xor_sync", __LINE__)
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

#define SIM_EXPORT(symbol, ...)                                                                                                      \
    extern "C" __attribute__((visibility("default"))) void symbol(const unsigned* size, int way, void** p, char* message, uint64_t* at) { \
        sim::launch(size, way, [](void** q) { sim::unpack<__VA_ARGS__>(__VA_ARGS__, q); }, p, message, at);                          \
    }

#include "cudasim_hopper.h"
