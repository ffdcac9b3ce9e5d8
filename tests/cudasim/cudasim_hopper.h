// Hopper's barriers in shared memory, TMA copies and warpgroup products, as the PTX ISA describes them. Included at the end of cudasim.h.
//   - a TMA load lands when a thread waits for its barrier and nothing else can go on; its target is NaN until then; a load that overwrites
//     what a product under way still reads, and a product of what has not landed, are reported
//   - a product is done when its whole warpgroup waits for it and no other thread can go on, one warpgroup at a time; it reads its
//     operands then, and its accumulators are NaN until then
//   - the blocks of a cluster run at the same time; what reaches into one that has ended is reported
//   - bytes that were not announced, arrivals too many or too few, a missing fence, threads of a warpgroup in different products are reported
// Stricter than the PTX ISA: every group of products begins with a fence.
// What it cannot see: a plain store to an operand of a product without fence.proxy.async.
#pragma once

namespace sim {

// ----- shared memory by number ---------------------------------------------------------------------------------------------------

// While it lives, addresses are those of another block of the cluster.
struct InBlock {
    const int before = int(block_index.x - first_block.x);
    explicit InBlock(int rank) { enter_block(rank); }
    ~InBlock() { enter_block(before); }
};
static char* shared_origin() { return (char*)((uintptr_t)shared_begin & ~(uintptr_t)4095); }  // so that alignment is the pointer's
static unsigned shared_address(const void* p) { return (unsigned)((const char*)p - shared_origin()); }
static unsigned swizzled(unsigned address, unsigned row_bytes) { return address ^ (address >> 3 & (row_bytes - 16)); }

// ----- barriers ------------------------------------------------------------------------------------------------------------------

using Word = unsigned long long;  // of a barrier, in shared memory

struct BarrierState {
    Word* at;
    int arrivals, missing;  // of a phase; until this phase is complete
    int bytes;              // announced and not landed
    unsigned phase;
    int maker;
    bool known_to_tma;
};
struct alignas(64) TensorMap {
    uint64_t base;
    int64_t stride[5];  // bytes; axis 0 is the innermost
    uint32_t size[5], box[5], rank, row_bytes;
    uint32_t unused[8];
};
static_assert(sizeof(TensorMap) == 128, "as large as the driver's");
struct Load { TensorMap map; Word* barrier; char* to; int corner[5]; int rank; };  // rank: of the block that it lands in

constexpr uint64_t MADE = 0x6d62617272696572;  // what a barrier's word holds here; its state is in `barriers`
static std::vector<BarrierState> barriers;
static std::vector<Load> loads;       // under way
static std::vector<Word*> awaited;  // [thread]: the barrier
static std::vector<int> parity_of;      // [thread]: and the parity

static void stop(const char* format, const char* place) {
    fail(format, place, current);
    if (current >= 0) leave(DONE);
}
static BarrierState& barrier_at(Word* at, const char* place) {
    if ((char*)at < shared_begin || (char*)(at + 1) > shared_end) stop("%s: thread %d names a barrier outside of the shared memory", place);
    for (BarrierState& b : barriers)
        if (b.at == at && *at == MADE) return b;
    stop("%s: thread %d names a barrier that is not made, or was overwritten", place);
    return barriers[0];
}
static void complete_phase(BarrierState& b) {
    if (b.missing || b.bytes) return;
    for (const Load& load : loads)
        if (load.barrier == b.at) fail("a barrier completes phase %u before all its loads have landed: too few bytes were announced", b.phase);
    b.phase++, b.missing = b.arrivals;
}
static void barrier_init(Word* at, int arrivals) {
    if ((char*)at < shared_begin || (char*)(at + 1) > shared_end) stop("%s: thread %d makes a barrier outside of the shared memory", "barrier_init");
    *at = MADE;
    barriers.push_back({at, arrivals, arrivals, 0, 0, current, false});
}
static void barriers_are_made() {
    for (BarrierState& b : barriers)
        if (b.maker == current) b.known_to_tma = true;
}
static void arrive(BarrierState& b, const char* place) {
    if (b.missing == 0) return stop("%s: thread %d arrives at a barrier that waits for nobody", place);
    b.missing--;
    complete_phase(b);
}
static void barrier_arrive(Word* at) { arrive(barrier_at(at, "barrier_arrive"), "barrier_arrive"); }
static void barrier_expect(Word* at, int bytes) {
    BarrierState& b = barrier_at(at, "barrier_expect");
    b.bytes += bytes;
    arrive(b, "barrier_expect");
}

static int box_bytes(const TensorMap& m) {
    int bytes = 2;
    for (unsigned i = 0; i < m.rank; i++) bytes *= m.box[i];
    return bytes;
}
static void land(const Load& load) {
    const InBlock there(load.rank);
    const TensorMap& m = load.map;
    unsigned to = shared_address(load.to);
    for (unsigned i = 0, n = box_bytes(m) / 2; i < n; i++, to += 2) {
        const char* from = (const char*)m.base;
        bool inside = true;
        for (unsigned axis = 0, rest = i; axis < m.rank; rest /= m.box[axis], axis++) {
            const int64_t at = load.corner[axis] + int64_t(rest % m.box[axis]);
            inside &= at >= 0 && at < m.size[axis];
            from += at * m.stride[axis];
        }
        if (inside) memcpy(shared_origin() + swizzled(to, m.row_bytes), from, 2);
        else memset(shared_origin() + swizzled(to, m.row_bytes), 0, 2);
    }
}
static bool phase_is_over(int thread) {
    const InBlock there(block_of(thread));
    BarrierState& b = barrier_at(awaited[thread], "barrier_wait");
    for (size_t i = 0; b.missing == 0 && i < loads.size() && int(b.phase & 1) == parity_of[thread];) {
        if (loads[i].barrier != b.at) { i++; continue; }
        const Load load = loads[i];
        loads.erase(loads.begin() + i);
        land(load);
        b.bytes -= box_bytes(load.map);
        if (b.bytes <= 0) complete_phase(b);
    }
    return int(b.phase & 1) != parity_of[thread];
}
static void barrier_wait(Word* at, int parity) {
    BarrierState& b = barrier_at(at, "barrier_wait");
    awaited[current] = at, parity_of[current] = parity;
    if (int(b.phase & 1) == parity) wait_for(phase_is_over, "barrier_wait", false);
}
static void describe_barriers(char* text, size_t room) {
    for (const BarrierState& b : barriers) {
        bool waited_for = false;
        for (size_t i = 0; i < fibers.size(); i++) waited_for |= fibers[i].state == AT_CONDITION && awaited[i] == b.at;
        const size_t used = strlen(text);
        if (waited_for && used + 100 < room)
            snprintf(text + used, room - used, " the barrier at byte %zd is in phase %u, without %d arrivals and %d bytes;",
                     (char*)b.at - shared_of[0], b.phase, b.missing, b.bytes);
    }
}

// ----- products ------------------------------------------------------------------------------------------------------------------

struct Product { float* d; int n; uint64_t a; const unsigned* registers; uint64_t b; bool b_by_n, add; };
struct Accumulator { float* d; int n; std::vector<float> value; int under_way; };
struct Products {  // of one thread
    std::vector<std::vector<Product>> groups;  // the last one is open
    std::vector<Accumulator> accumulators;
    bool fenced, done;
    int pending;  // groups that it does not wait for
};
static std::vector<Products> products;  // [thread]
constexpr int WARPGROUP = 128;

struct Operand {
    unsigned start, blocks, rows, row_bytes;  // distance of blocks, of eight rows
    Operand(uint64_t d) {
        start = (d & 0x3FFF) << 4, blocks = (d >> 16 & 0x3FFF) << 4, rows = (d >> 32 & 0x3FFF) << 4, row_bytes = 256 >> (d >> 62);
    }
    // Where element k of row or column i lies.
    unsigned by_k(int i, int k) const { return swizzled(start + i / 8 * rows + i % 8 * row_bytes + k * 2, row_bytes); }
    unsigned by_n(int i, int k) const {
        const int width = row_bytes / 2;
        return swizzled(start + i / width * blocks + i % width * 2 + k / 8 * rows + k % 8 * row_bytes, row_bytes);
    }
    unsigned first() const { return start / (8 * row_bytes) * (8 * row_bytes); }
    unsigned end(int n, bool is_by_n) const {
        return first() + (is_by_n ? (n * 2 / row_bytes - 1) * blocks + rows + 8 * row_bytes : n / 8 * rows);
    }
    bool touches(const char* begin, int bytes, int n, bool is_by_n) const {
        return shared_address(begin) < end(n, is_by_n) && first() < shared_address(begin) + bytes;
    }
    void check(int n, bool is_by_n) const {
        if (row_bytes == 256) stop("%s: thread %d has an operand without a swizzle, which is not simulated", "wgmma");
        if (is_by_n ? start % (8 * row_bytes) : start - first() > row_bytes - 32)
            stop("%s: thread %d has an operand whose block does not begin at a multiple of eight rows", "wgmma");
        if (shared_origin() + first() < shared_begin || shared_origin() + end(n, is_by_n) > shared_end)
            stop("%s: thread %d has an operand outside of the dynamic shared memory", "wgmma");
        for (const Load& load : loads)
            if (load.rank == block_of(current) && touches(load.to, box_bytes(load.map), n, is_by_n))
                stop("%s: thread %d multiplies what a TMA load has not brought yet", "wgmma");
    }
};

static void wgmma_fence() { products[current].fenced = true; }
static void wgmma_commit() { products[current].groups.emplace_back(), products[current].fenced = false; }
static void wgmma(float* d, int n, uint64_t a, const unsigned* registers, uint64_t b, bool b_by_n, bool add) {
    Products& mine = products[current];
    if (!mine.fenced) stop("%s: thread %d begins a group of products without a fence", "wgmma");
    if (!registers) Operand(a).check(64, false);
    Operand(b).check(n, b_by_n);
    Accumulator* sums = nullptr;
    for (Accumulator& other : mine.accumulators)
        if (other.d == d) sums = &other;
    if (!sums) mine.accumulators.push_back({d, n, std::vector<float>(d, d + n / 2), 0}), sums = &mine.accumulators.back();
    sums->under_way++;
    memset((void*)d, 0xFF, n / 2 * sizeof(float));
    mine.groups.back().push_back({d, n, a, registers, b, b_by_n, add});
}

NO_CHECKS static void multiply(int first, int group, int index) {
    const Product& one = products[first].groups[group][index];
    const int n = one.n, columns = n / 8;
    float A[64][16];
    Row B[16][32], C[64][32];
    std::vector<float>* sums[WARPGROUP];
    for (int t = 0; t < WARPGROUP; t++) {
        const auto& groups = products[first + t].groups;
        if ((int)groups[group].size() <= index)
            return fail("divergent warpgroup: thread %d has fewer products under way than thread %d", first + t, first);
        const Product& p = groups[group][index];
        if (p.n != n || p.a != one.a || p.b != one.b || p.add != one.add || p.b_by_n != one.b_by_n || !p.registers != !one.registers)
            return fail("divergent warpgroup: threads %d and %d have different products under way", first, first + t);
        for (Accumulator& s : products[first + t].accumulators)
            if (s.d == p.d) sums[t] = &s.value;
        const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
        for (int i = 0; i < n / 2; i++) C[row + i / 2 % 2 * 8][i / 4][column + i % 2] = p.add ? (*sums[t])[i] : 0.0f;
        for (int i = 0; p.registers && i < 8; i++) A[row + i / 2 % 2 * 8][column + i / 4 * 8 + i % 2] = half_of(p.registers[i / 2], i % 2);
    }
    const Operand a(one.a), b(one.b);
    const auto element = [](unsigned address) { return half_values[*(const unsigned short*)(shared_origin() + address)]; };
    for (int k = 0; k < 16; k++) {
        for (int m = 0; !one.registers && m < 64; m++) A[m][k] = element(a.by_k(m, k));
        for (int i = 0; i < n; i++) B[k][i / 8][i % 8] = element(one.b_by_n ? b.by_n(i, k) : b.by_k(i, k));
    }
    for (int m = 0; m < 64; m++)
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < columns; c++) C[m][c] += A[m][k] * B[k][c];
    for (int t = 0; t < WARPGROUP; t++) {
        const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
        for (int i = 0; i < n / 2; i++) (*sums[t])[i] = C[row + i / 2 % 2 * 8][i / 4][column + i % 2];
    }
}
// The accumulators of what is done get their values; they must have been left alone meanwhile.
static void finish(int thread, int done) {
    Products& mine = products[thread];
    for (int g = 0; g < done; g++)
        for (const Product& p : mine.groups[g])
            for (Accumulator& s : mine.accumulators)
                if (s.d == p.d) s.under_way--;
    mine.groups.erase(mine.groups.begin(), mine.groups.begin() + done);
    for (size_t i = 0; i < mine.accumulators.size();) {
        Accumulator& s = mine.accumulators[i];
        if (s.under_way) { i++; continue; }
        for (int j = 0; j < s.n / 2; j++)
            if (((const unsigned*)s.d)[j] != ~0u) fail("thread %d writes to an accumulator of a product that is under way", thread);
        memcpy((void*)s.d, s.value.data(), s.n / 2 * sizeof(float));
        mine.accumulators.erase(mine.accumulators.begin() + i);
    }
}
static bool products_are_done(int thread) {
    Products& mine = products[thread];
    const InBlock there(block_of(thread));
    const int in_block = thread % threads_per_block / WARPGROUP * WARPGROUP, first = block_of(thread) * threads_per_block + in_block;
    if (!mine.done) {
        if (one_is_met) return false;
        if (in_block + WARPGROUP > threads_per_block) return fail("thread %d multiplies in a warpgroup that is not whole", thread), false;
        for (int t = first; t < first + WARPGROUP; t++) {
            if (fibers[t].state == DONE) return fail("thread %d waits for products, thread %d has returned", thread, t), false;
            if (fibers[t].state != AT_CONDITION || fibers[t].condition != products_are_done) return false;
            if (products[t].groups.size() != mine.groups.size() || products[t].pending != mine.pending)
                return fail("divergent warpgroup: threads %d and %d wait for different groups of products", thread, t), false;
        }
        one_is_met = true;
        const int done = std::max(0, (int)mine.groups.size() - 1 - mine.pending);
        for (int g = 0; g < done; g++)
            for (int i = 0; i < (int)mine.groups[g].size() && !failure[0]; i++) multiply(first, g, i);
        for (int t = first; t < first + WARPGROUP && !failure[0]; t++) finish(t, done), products[t].done = true;
    }
    mine.done = false;
    return !failure[0];
}
static void wgmma_wait(int pending) {
    products[current].pending = pending;
    wait_for(products_are_done, "wgmma_wait", true);
}

// ----- TMA -----------------------------------------------------------------------------------------------------------------------

static void begin_load(char* to, const TensorMap& map, Word* barrier, std::initializer_list<int> corner) {
    const int bytes = box_bytes(map), rank = int(block_index.x - first_block.x);
    const BarrierState& b = barrier_at(barrier, "tma_load");
    if (!b.known_to_tma) stop("%s: thread %d uses a barrier before barriers_are_made", "tma_load");
    if (corner.size() != map.rank) stop("%s: thread %d names a corner of another rank than the tensor's", "tma_load");
    if (shared_address(to) % 128) stop("%s: thread %d has an address that is no multiple of 128", "tma_load");
    if (to < shared_begin || to + bytes > shared_end) stop("%s: thread %d leaves the dynamic shared memory", "tma_load");
    for (int t = rank * threads_per_block; t < (rank + 1) * threads_per_block; t++)
        for (const auto& group : products[t].groups)
            for (const Product& p : group)
                if ((!p.registers && Operand(p.a).touches(to, bytes, 64, false)) || Operand(p.b).touches(to, bytes, p.n, p.b_by_n))
                    stop("%s: thread %d overwrites what a product under way still reads", "tma_load");
    for (const Load& load : loads)
        if (load.to < to + bytes && to < load.to + box_bytes(load.map)) stop("%s: thread %d overwrites a load that is under way", "tma_load");
    memset(to, 0xFF, bytes);
    Load load{map, barrier, to, {}, rank};
    std::copy(corner.begin(), corner.end(), load.corner);
    loads.push_back(load);
}
static void tma_load(void* to, const TensorMap& map, Word* barrier, std::initializer_list<int> corner) {
    begin_load((char*)to, map, barrier, corner);
}

// ----- clusters ------------------------------------------------------------------------------------------------------------------

static std::vector<unsigned> synchronised;  // [thread]: how often

// Goes on in another block's shared memory, which must not have ended.
static void expect_alive(int rank, const char* place) {
    if (rank < 0 || rank >= (int)shared_of.size()) stop("%s: thread %d names a block that its cluster does not have", place);
    for (int t = rank * threads_per_block; t < (rank + 1) * threads_per_block; t++)
        if (fibers[t].state != DONE) return;
    stop("%s: thread %d reaches into a block that has ended", place);
}
static int cluster_rank() { return block_of(current); }
static bool all_are_here(int thread) {
    for (size_t t = 0; t < fibers.size(); t++)
        if (fibers[t].state != DONE && synchronised[t] < synchronised[thread]) return false;
    return true;
}
static void cluster_sync() {
    synchronised[current]++;
    wait_for(all_are_here, "cluster_sync", false);
}
static void barrier_arrive_in(Word* at, int rank) {
    expect_alive(rank, "barrier_arrive_in");
    char* there = shared_of[rank] + ((char*)at - shared_begin);
    const InBlock other(rank);
    barrier_arrive((Word*)there);
}
// The box lands at the same place in every block of `mask`, and is counted by the barrier at the same place there.
static void tma_load_to_all(void* to, const TensorMap& map, Word* barrier, unsigned mask, std::initializer_list<int> corner) {
    const char* here = shared_begin;
    for (int rank = 0; rank < 16; rank++) {
        if (!(mask >> rank & 1)) continue;
        expect_alive(rank, "tma_load_to_all");
        const InBlock other(rank);
        begin_load(shared_begin + ((char*)to - here), map, (Word*)(shared_begin + ((char*)barrier - here)), corner);
    }
}

// ----- a block -------------------------------------------------------------------------------------------------------------------

static void begin_hopper(unsigned threads) {
    barriers.clear(), loads.clear();
    awaited.assign(threads, nullptr), parity_of.assign(threads, 0);
    products.assign(threads, {});
    synchronised.assign(threads, 0);
    for (Products& p : products) p.groups.emplace_back();
}
static void end_hopper() {
    if (!loads.empty()) fail("block (%u, %u, %u) ends while TMA loads are under way", block_index.x, block_index.y, block_index.z);
    for (const BarrierState& b : barriers)
        if (b.missing != b.arrivals || b.bytes)
            fail("block (%u, %u, %u) ends while %d of %d have arrived at a barrier", block_index.x, block_index.y, block_index.z,
                 b.arrivals - b.missing, b.arrivals);
    for (size_t t = 0; t < products.size(); t++)
        if (!products[t].accumulators.empty()) fail("thread %zu ends while its products are under way", t);
}

}  // namespace sim
