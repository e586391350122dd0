// Reads one launch from standard input, runs it, writes its buffers to standard output.
//
// Exit status 0: done. FAULT: the kernel did what no kernel may, REFUSED: the launch does not fit;
// standard error says what. A sanitizer's report, or a signal, is the process's own end.
#include "emulation.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

extern "C" const char *__asan_default_options() { return "detect_leaks=0:detect_stack_use_after_return=0"; }
extern "C" const char *__ubsan_default_options() { return "print_stacktrace=1"; }
#endif

namespace emulation {

constexpr int FAULT = 3, REFUSED = 4;
constexpr unsigned MAX_THREADS = 1024, WARP = 32;
// What a block of compute capability 9.0 can have.
constexpr uint64_t MAX_SHARED = 227 * 1024;
constexpr uint64_t MAX_BYTES = uint64_t(1) << 32;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 256 * 1024;
#else
constexpr size_t STACK = 64 * 1024;
#endif
constexpr size_t PAGE = 4096;

enum class Order : uint32_t { forward, reverse, strided };
enum class State { ready, at_barrier, in_warp, ended };

// Bytes on their way to shared memory.
struct Copy {
    void *to;
    const void *from;
    bool there;
    unsigned group;
};

struct Fiber : Thread {
    void *top;
    char *stack;
    unsigned number;
    State state;
    Site site;
    // Of the collective that the fiber is in.
    Collective kind;
    unsigned mask;
    uint64_t value;
    int operand, width;
    bool predicate;
    Joint body;
    // Copies that nobody has waited for, and how many groups there have been.
    std::vector<Copy> copies;
    unsigned n_groups;
};

Thread *current;
dim3 grid, block;
const Export *Export::first;

static Fiber fibers[MAX_THREADS];
static unsigned n_threads, running;
static void *scheduler_top;
static const Export *entry;
static const unsigned char *arguments[Export::MAX_PARAMETERS];
static void *shared;
static uint64_t shared_size;
static Order turns;
static int barrier_result;

static Fiber &self() { return *static_cast<Fiber *>(current); }

static const char *name(State state) {
    switch (state) {
    case State::ready: return "runs";
    case State::at_barrier: return "waits at the block barrier of";
    case State::in_warp: return "waits for lanes of its warp at";
    case State::ended: return "has ended";
    }
    return "";
}

static void describe(const Fiber &fiber) {
    std::fprintf(stderr, "thread (%u, %u, %u) %s", fiber.index.x, fiber.index.y, fiber.index.z, name(fiber.state));
    if (fiber.state == State::at_barrier || fiber.state == State::in_warp) {
        std::fprintf(stderr, " %s:%d", fiber.site.file, fiber.site.line);
    }
}

[[noreturn]] static void leave(int status) {
    std::fprintf(stderr, "\n");
    std::fflush(stderr);
    _exit(status);
}

[[noreturn]] static void fault(const char *what, const Fiber &one, const Fiber *other) {
    std::fprintf(stderr, "%s in %s, block (%u, %u, %u): ", what, entry->name, one.block.x, one.block.y, one.block.z);
    describe(one);
    if (other != nullptr) {
        std::fprintf(stderr, ", ");
        describe(*other);
    }
    leave(FAULT);
}

[[noreturn]] static void refuse(const char *what, uint64_t got, uint64_t allowed) {
    std::fprintf(stderr, "%s: got %llu, expected %llu", what, (unsigned long long)got, (unsigned long long)allowed);
    leave(REFUSED);
}

// Saves the callee's registers on this stack, remembers its top in `*from`, and goes on at `to`.
extern "C" void emulation_switch(void **from, void *to);
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_switch, . - emulation_switch
)");

#if defined(__SANITIZE_ADDRESS__)
static const void *scheduler_stack;
static size_t scheduler_size;

static void to_fiber(Fiber &fiber) {
    void *kept;
    __sanitizer_start_switch_fiber(&kept, fiber.stack + PAGE, STACK);
    emulation_switch(&scheduler_top, fiber.top);
    __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
}

static void to_scheduler(Fiber &fiber) {
    void *kept = nullptr;
    __sanitizer_start_switch_fiber(fiber.state == State::ended ? nullptr : &kept, scheduler_stack, scheduler_size);
    emulation_switch(&fiber.top, scheduler_top);
    __sanitizer_finish_switch_fiber(kept, nullptr, nullptr);
}

static void arrive() { __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size); }
#else
static void to_fiber(Fiber &fiber) { emulation_switch(&scheduler_top, fiber.top); }
static void to_scheduler(Fiber &fiber) { emulation_switch(&fiber.top, scheduler_top); }
static void arrive() {}
#endif

// Where a fiber begins, and never returns from.
static void begin() {
    arrive();
    entry->call(entry->entry, arguments);
    self().state = State::ended;
    to_scheduler(self());
    std::abort();
}

static void prepare(Fiber &fiber, unsigned number, uint3 at) {
    if (fiber.stack == nullptr) {
        // A page that cannot be touched ends a stack that grows too large.
        void *memory = mmap(nullptr, STACK + PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE) != 0) {
            refuse("no memory for stacks, bytes", STACK, STACK);
        }
        fiber.stack = static_cast<char *>(memory);
    }
#if defined(__SANITIZE_ADDRESS__)
    // Frames of the fiber before, which never returned, left their marks.
    __asan_unpoison_memory_region(fiber.stack + PAGE, STACK);
#endif
    fiber.number = number;
    fiber.index = {number % block.x, number / block.x % block.y, number / block.x / block.y};
    fiber.block = at;
    fiber.state = State::ready;
    fiber.copies.clear();
    fiber.n_groups = 0;
    // As emulation_switch leaves a stack: six registers and where to return to, which sees the
    // stack as after a call.
    void **top = reinterpret_cast<void **>(fiber.stack + PAGE + STACK) - 1;
    *top = nullptr;
    *--top = reinterpret_cast<void *>(begin);
    for (int i = 0; i < 6; ++i) {
        *--top = nullptr;
    }
    fiber.top = top;
}

static void wait(State state, Site site) {
    Fiber &fiber = self();
    fiber.state = state;
    fiber.site = site;
    to_scheduler(fiber);
}

void barrier(Site site) { barrier_count(false, site); }

int barrier_count(bool predicate, Site site) {
    self().predicate = predicate;
    wait(State::at_barrier, site);
    return barrier_result;
}

void *dynamic_shared() { return shared; }

static int source_lane(const Fiber &fiber) {
    const int lane = int(fiber.number % WARP), width = fiber.width;
    const int first = lane / width * width;
    switch (fiber.kind) {
    case Collective::shuffle: return first + (fiber.operand & (width - 1));
    case Collective::shuffle_up: return lane - fiber.operand < first ? lane : lane - fiber.operand;
    case Collective::shuffle_down: return lane + fiber.operand >= first + width ? lane : lane + fiber.operand;
    case Collective::shuffle_xor: return (lane ^ fiber.operand) >= first + width ? lane : lane ^ fiber.operand;
    default: return lane;
    }
}

// Gives every lane of a complete collective its result.
static void resolve(Fiber *warp, unsigned mask) {
    uint64_t results[WARP] = {};
    if (warp[0].kind == Collective::joint) {
        void *lanes[WARP];
        for (unsigned lane = 0; lane < WARP; ++lane) {
            lanes[lane] = reinterpret_cast<void *>(warp[lane].value);
        }
        warp[0].body(lanes);
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if ((mask >> lane & 1) == 0) {
            continue;
        }
        const Fiber &fiber = warp[lane];
        switch (fiber.kind) {
        case Collective::sync:
        case Collective::joint: break;
        case Collective::ballot:
        case Collective::match:
            for (unsigned other = 0; other < WARP; ++other) {
                if ((mask >> other & 1) != 0 &&
                    (fiber.kind == Collective::ballot ? warp[other].value != 0 : warp[other].value == fiber.value)) {
                    results[lane] |= uint64_t(1) << other;
                }
            }
            break;
        default: {
            const int source = source_lane(fiber);
            if ((mask >> source & 1) == 0) {
                fault("a shuffle from a lane that is not in the mask", fiber, &warp[source]);
            }
            results[lane] = warp[source].value;
        }
        }
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if ((mask >> lane & 1) != 0) {
            warp[lane].value = results[lane];
            warp[lane].state = State::ready;
        }
    }
}

uint64_t together(Collective kind, unsigned mask, uint64_t value, int operand, int width, Site site) {
    Fiber &fiber = self();
    fiber.kind = kind;
    fiber.mask = mask;
    fiber.value = value;
    fiber.operand = operand;
    fiber.width = width;
    fiber.site = site;
    fiber.state = State::in_warp;
    const unsigned lane = fiber.number % WARP, first = fiber.number - lane;
    if ((mask >> lane & 1) == 0) {
        fault("a collective whose mask lacks the calling lane", fiber, nullptr);
    }
    if (width <= 0 || width > int(WARP) || (width & (width - 1)) != 0) {
        fault("a shuffle whose width is no power of two up to 32", fiber, nullptr);
    }
    bool complete = true;
    for (unsigned other = 0; other < WARP; ++other) {
        if ((mask >> other & 1) == 0) {
            continue;
        }
        const Fiber &fellow = fibers[first + other];
        if (first + other >= n_threads) {
            fault("a collective whose mask names a lane that does not exist", fiber, nullptr);
        }
        if (fellow.state == State::ended) {
            fault("a collective with a lane that has ended", fiber, &fellow);
        }
        complete = complete && fellow.state == State::in_warp && fellow.kind == kind && fellow.mask == mask &&
                   fellow.site == site;
    }
    if (complete) {
        resolve(&fibers[first], mask);
    }
    // Also the lane that completes a collective lets the others go first.
    to_scheduler(fiber);
    return fiber.value;
}

void jointly(Joint body, void *own, Site site) {
    self().body = body;
    together(Collective::joint, 0xffffffffu, reinterpret_cast<uint64_t>(own), 0, WARP, site);
}

// Where the program's own variables are, of which static shared memory is some.
extern "C" char __data_start[], _end[];

// 16 bytes that instructions of shared memory can access.
static void check_shared(const char *what, const void *at) {
    const char *first = static_cast<const char *>(at), *dynamic = static_cast<const char *>(shared);
    const bool there = (first >= dynamic && first < dynamic + shared_size) || (first >= __data_start && first < _end);
    if (!there || reinterpret_cast<uintptr_t>(at) % 16 != 0) {
        fault(what, self(), nullptr);
    }
}

// A lane's part of load_matrices.
struct Rows {
    uint32_t *registers;
    const uint16_t *row;
    bool transposed;
};

static void load_lanes(void *const *lanes) {
    for (int lane = 0; lane < int(WARP); ++lane) {
        const Rows &own = *static_cast<const Rows *>(lanes[lane]);
        for (int i = 0; i < 4; ++i) {
            const auto row = [&](int number) { return static_cast<const Rows *>(lanes[8 * i + number])->row; };
            const int group = lane / 4, pair = lane % 4 * 2;
            const uint32_t low = own.transposed ? row(pair)[group] : row(group)[pair];
            const uint32_t high = own.transposed ? row(pair + 1)[group] : row(group)[pair + 1];
            own.registers[i] = low | high << 16;
        }
    }
}

void load_matrices(uint32_t (&registers)[4], const void *row, bool transposed, Site site) {
    check_shared("a matrix that is not at 16 bytes of shared memory", row);
    Rows own{registers, static_cast<const uint16_t *>(row), transposed};
    jointly(load_lanes, &own, site);
}

static void perform(const Copy &copy) {
    if (copy.there) {
        std::memcpy(copy.to, copy.from, 16);
    } else {
        std::memset(copy.to, 0, 16);
    }
}

void copy_async(void *to, const void *from, bool there) {
    check_shared("a copy to what is not 16 bytes of shared memory", to);
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        fault("a copy from a misaligned place", self(), nullptr);
    }
    const Copy copy{to, from, there, self().n_groups};
    if (turns == Order::forward) {
        perform(copy);
    } else {
        self().copies.push_back(copy);
    }
}

void commit() { ++self().n_groups; }

void wait(unsigned n_pending) {
    auto &copies = self().copies;
    size_t n_done = 0;
    for (; n_done < copies.size() && copies[n_done].group + n_pending < self().n_groups; ++n_done) {
        perform(copies[n_done]);
    }
    copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(n_done));
}

static bool run(Fiber &fiber) {
    if (fiber.state != State::ready) {
        return false;
    }
    current = &fiber;
    to_fiber(fiber);
    running -= fiber.state == State::ended;
    return true;
}

// One turn of every thread. Forward and reverse, a warp goes as far as it can before the next one
// begins; strided, threads of all warps take turns.
static bool turn(Order order) {
    bool any = false;
    if (order == Order::strided) {
        unsigned step = 37;
        while (n_threads % step == 0) {
            ++step;
        }
        for (unsigned i = 0, number = step / 2 % n_threads; i < n_threads; ++i, number = (number + step) % n_threads) {
            any |= run(fibers[number]);
        }
        return any;
    }
    const unsigned n_warps = (n_threads + WARP - 1) / WARP;
    for (unsigned i = 0; i < n_warps; ++i) {
        const unsigned first = (order == Order::forward ? i : n_warps - 1 - i) * WARP;
        const unsigned lanes = n_threads - first < WARP ? n_threads - first : WARP;
        for (bool again = true; again;) {
            again = false;
            for (unsigned lane = 0; lane < lanes; ++lane) {
                again |= run(fibers[first + (order == Order::forward ? lane : lanes - 1 - lane)]);
            }
            any |= again;
        }
    }
    return any;
}

// All threads wait: that is the barrier, or they wait for one another for ever.
static void release() {
    const Fiber &one = fibers[0];
    int count = 0;
    for (unsigned i = 0; i < n_threads; ++i) {
        const Fiber &fiber = fibers[i];
        if (fiber.state == State::in_warp) {
            const Fiber *other = nullptr;
            for (unsigned lane = 0; lane < WARP && other == nullptr; ++lane) {
                const Fiber &fellow = fibers[i / WARP * WARP + lane];
                if ((fiber.mask >> lane & 1) != 0 && (fellow.state != State::in_warp || !(fellow.site == fiber.site))) {
                    other = &fellow;
                }
            }
            fault("a divergent collective", fiber, other);
        }
        if (fiber.state != one.state || !(fiber.site == one.site)) {
            fault("a divergent barrier", one, &fiber);
        }
        count += fiber.predicate;
    }
    barrier_result = count;
    for (unsigned i = 0; i < n_threads; ++i) {
        fibers[i].state = State::ready;
    }
}

static void run_block(uint3 at, Order order, uint64_t shared_bytes) {
    // What nobody wrote is NaN.
    shared = nullptr;
    shared_size = shared_bytes;
    turns = order;
    if (posix_memalign(&shared, 128, shared_bytes) != 0) {
        refuse("no memory for shared memory, bytes", shared_bytes, MAX_SHARED);
    }
    std::memset(shared, 0xff, shared_bytes);
    for (unsigned i = 0; i < n_threads; ++i) {
        prepare(fibers[i], i, at);
    }
    running = n_threads;
    while (running > 0) {
        if (!turn(order)) {
            release();
        }
    }
    std::free(shared);
}

static void take(void *to, size_t bytes) {
    if (bytes > 0 && std::fread(to, 1, bytes, stdin) != bytes) {
        refuse("the launch ends early, bytes wanted", 0, bytes);
    }
}

static uint32_t number() {
    uint32_t value;
    take(&value, sizeof value);
    return value;
}

static uint64_t size() {
    uint64_t value;
    take(&value, sizeof value);
    if (value > MAX_BYTES) {
        refuse("bytes", value, MAX_BYTES);
    }
    return value;
}

static void out_of_time(int) {
    static const char text[] = "the launch runs longer than its limit\n";
    ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    _exit(written > 0 ? FAULT : FAULT + 1);
}

} // namespace emulation

int main() {
    using namespace emulation;
    std::vector<char> kernel(size() + 1, '\0');
    take(kernel.data(), kernel.size() - 1);
    for (entry = Export::first; entry != nullptr && std::strcmp(entry->name, kernel.data()) != 0;) {
        entry = entry->next;
    }
    if (entry == nullptr) {
        std::fprintf(stderr, "there is no kernel %s", kernel.data());
        leave(REFUSED);
    }
    grid = {number(), number(), number()};
    block = {number(), number(), number()};
    const Order order = Order(number());
    const uint32_t seconds = number();
    const uint64_t shared_bytes = size();
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (block.x > MAX_THREADS || block.y > MAX_THREADS || block.z > 64 || threads == 0 || threads > MAX_THREADS) {
        refuse("threads in a block", threads, MAX_THREADS);
    }
    if (grid.x == 0 || grid.x > 0x7fffffff || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
        refuse("blocks in the grid", uint64_t(grid.x) * grid.y * grid.z, 0x7fffffff);
    }
    if (shared_bytes > MAX_SHARED) {
        refuse("bytes of dynamic shared memory", shared_bytes, MAX_SHARED);
    }
    n_threads = unsigned(threads);

    // Buffers of exactly their size, each in its own allocation.
    std::vector<std::pair<unsigned char *, uint64_t>> buffers(number());
    for (auto &buffer : buffers) {
        buffer.second = size();
        void *memory = nullptr;
        if (posix_memalign(&memory, 256, buffer.second) != 0) {
            refuse("no memory for a buffer, bytes", buffer.second, MAX_BYTES);
        }
        buffer.first = static_cast<unsigned char *>(memory);
        take(buffer.first, buffer.second);
    }
    const uint32_t count = number();
    if (count != uint32_t(entry->count)) {
        refuse("arguments", count, uint64_t(entry->count));
    }
    std::vector<std::vector<unsigned char>> values(count);
    for (uint32_t i = 0; i < count; ++i) {
        // A buffer and the offset in it, or a value's bytes.
        if (number() == 0) {
            const uint32_t index = number();
            const uint64_t offset = size();
            if (index >= buffers.size() || offset > buffers[index].second) {
                refuse("the argument's buffer or offset", offset, index < buffers.size() ? buffers[index].second : 0);
            }
            const unsigned char *at = buffers[index].first + offset;
            values[i].resize(sizeof at);
            std::memcpy(values[i].data(), &at, sizeof at);
        } else {
            values[i].resize(size());
            take(values[i].data(), values[i].size());
        }
        if (values[i].size() != entry->sizes[i]) {
            std::fprintf(stderr, "argument %u of %s, ", i, entry->name);
            refuse("bytes", values[i].size(), entry->sizes[i]);
        }
        arguments[i] = values[i].data();
    }

    std::signal(SIGALRM, out_of_time);
    alarm(seconds);
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
        const uint64_t at = order == Order::reverse ? blocks - 1 - i : i;
        run_block({unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)}, order,
                  shared_bytes);
    }
    for (auto &buffer : buffers) {
        if (std::fwrite(buffer.first, 1, buffer.second, stdout) != buffer.second) {
            refuse("the answer cannot be written, bytes", 0, buffer.second);
        }
        std::free(buffer.first);
    }
    return std::fflush(stdout) == 0 ? 0 : REFUSED;
}
