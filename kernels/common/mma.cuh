// Products on tensor cores: copies into shared memory that run beside the work, fragments, and the
// product of fragments.
//
// The wrappers of instructions at the end of this file have two bodies: inline PTX under nvcc, for
// compute capability 8.0 and later, and the emulation's own, which models the same registers lane
// by lane. Everything above them, and every kernel, is written once.
//
// A warp's product is D = A B + D, A [16, 16], B [16, 8], D [16, 8], bfloat16 or half precision with
// sums in f32. Lane l has group g = l / 4 and pair p = 2 (l % 4); two 16-bit numbers are a register,
// the first one low:
//
//   A  registers 0 .. 3  rows g, g + 8, g, g + 8, columns p and p + 1, in 2 and 3 eight later
//   B  registers 0, 1    rows p and p + 1, in 1 eight later, column g
//   D  numbers 0 .. 3    rows g, g, g + 8, g + 8, columns p, p + 1, p, p + 1
#pragma once

#include "pack.cuh"

template <typename T> struct FragmentA {
    uint32_t registers[4];
};

template <typename T> struct FragmentB {
    uint32_t registers[2];
};

struct Accumulator {
    float values[4];
};

// The row and the first of the two columns that D's numbers 0 and 1 have in this lane; 2 and 3 are
// eight rows below.
__device__ inline int accumulator_row() { return int(threadIdx.x % WARP) / 4; }
__device__ inline int accumulator_column() { return int(threadIdx.x % WARP) % 4 * 2; }

// A tile in shared memory has rows of P packs of 16 bytes, P a multiple of 2, and pack p of row r
// lies at swizzled<P>(r, p): packs of the same p in 8 rows from a multiple of 8 on are then in all 32
// banks, so that neither the instructions below nor 16-byte accesses wait for one another.
template <int P> __device__ inline int swizzled(int row, int pack) {
    static_assert(P > 0 && P % 2 == 0, "a multiple of 2");
    // Rows begin at multiples of this many packs in the banks, which hold 8.
    constexpr int turns = (P & -P) < 8 ? P & -P : 8;
    return row * P + (pack ^ (row / (8 / turns) & (turns - 1)));
}

__device__ void load_matrices(uint32_t (&registers)[4], const void *row, bool transposed);
__device__ void multiply(float (&d)[4], const FragmentA<bf16> &a, const FragmentB<bf16> &b);
__device__ void multiply(float (&d)[4], const FragmentA<f16> &a, const FragmentB<f16> &b);

// Sixteen bytes from global to shared memory, both aligned, or 16 zeros where not `there`: then
// nothing is read, and `from` may point beyond what there is. Done when the thread has waited for its
// group.
__device__ void copy_async(void *to, const void *from, bool there);
// Ends the group of the copies that this thread has begun since the last one.
__device__ void commit();
// Waits until all but the latest N groups of this thread are done. Others see them after a barrier.
template <int N> __device__ void wait();

// D += A B. All lanes of a warp must call this, and the loads below.
template <typename T>
__device__ inline void mma(Accumulator &d, const FragmentA<T> &a, const FragmentB<T> &b) {
    multiply(d.values, a, b);
}

// Loads begin at rows that are multiples of 8, from which on packs lie as from row 0 on: so a lane has
// one place for all of them, and what is known of `row` when compiling is part of the instruction.

// A from rows `row` .. of a tile whose rows are A's, its 16 columns from pack `pack` on.
template <int P, typename T>
__device__ inline void load_matrix_a(FragmentA<T> &a, const T *tile, int row, int pack) {
    const int lane = int(threadIdx.x % WARP);
    const int place = swizzled<P>(lane % 16, pack + lane / 16);
    load_matrices(a.registers, tile + place * PACK<T> + row * (P * PACK<T>), false);
}

// Two B side by side, from a tile whose 16 rows from `row` on are B's columns, as weights [out, in]
// have them: their 16 rows are the tile's columns from pack `pack` on.
template <int P, typename T>
__device__ inline void load_matrix_b(FragmentB<T> (&b)[2], const T *tile, int row, int pack) {
    const int lane = int(threadIdx.x % WARP);
    const int place = swizzled<P>(lane / 16 * 8 + lane % 8, pack + lane / 8 % 2);
    uint32_t registers[4];
    load_matrices(registers, tile + place * PACK<T> + row * (P * PACK<T>), false);
    b[0] = {{registers[0], registers[1]}};
    b[1] = {{registers[2], registers[3]}};
}

// Two B side by side, from a tile whose 16 rows from `row` on are B's rows, their 16 columns from
// pack `pack` on.
template <int P, typename T>
__device__ inline void load_matrix_b_by_rows(FragmentB<T> (&b)[2], const T *tile, int row, int pack) {
    const int lane = int(threadIdx.x % WARP);
    const int place = swizzled<P>(lane % 16, pack + lane / 16);
    uint32_t registers[4];
    load_matrices(registers, tile + place * PACK<T> + row * (P * PACK<T>), true);
    b[0] = {{registers[0], registers[1]}};
    b[1] = {{registers[2], registers[3]}};
}

// Two numbers rounded to storage, the first one low.
template <typename T> __device__ inline uint32_t pair_of(float low, float high) {
    const T pair[2] = {narrow<T>(low), narrow<T>(high)};
    uint32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return bits;
}

// The A of the next product whose 16 columns are the columns of two D side by side.
template <typename T>
__device__ inline FragmentA<T> narrow_to_a(const Accumulator &left, const Accumulator &right) {
    return {{pair_of<T>(left.values[0], left.values[1]), pair_of<T>(left.values[2], left.values[3]),
             pair_of<T>(right.values[0], right.values[1]),
             pair_of<T>(right.values[2], right.values[3])}};
}

#ifdef DEVICE_INSTRUCTIONS

__device__ inline uint32_t shared_address(const void *pointer) {
    return uint32_t(__cvta_generic_to_shared(pointer));
}

// Four matrices of 8 rows of 16 bytes: lane l gives where row l % 8 of matrix l / 8 begins, and
// gets numbers p and p + 1 of row g of each; of column g where transposed.
__device__ inline void load_matrices(uint32_t (&registers)[4], const void *row, bool transposed) {
    if (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                       "=r"(registers[3])
                     : "r"(shared_address(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]),
                       "=r"(registers[3])
                     : "r"(shared_address(row))
                     : "memory");
    }
}

#define MULTIPLY(T, dtype)                                                                         \
    __device__ inline void multiply(float (&d)[4], const FragmentA<T> &a,                          \
                                    const FragmentB<T> &b) {                                       \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." dtype "." dtype                      \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"        \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                     : "r"(a.registers[0]), "r"(a.registers[1]), "r"(a.registers[2]),              \
                       "r"(a.registers[3]), "r"(b.registers[0]), "r"(b.registers[1]));             \
    }
MULTIPLY(bf16, "bf16")
MULTIPLY(f16, "f16")
#undef MULTIPLY

__device__ inline void copy_async(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
}

__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> __device__ inline void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

inline void load_matrices(uint32_t (&registers)[4], const void *row, bool transposed) {
    emulation::load_matrices(registers, row, transposed, EMULATION_SITE);
}

inline void multiply(float (&d)[4], const FragmentA<bf16> &a, const FragmentB<bf16> &b) {
    emulation::multiply<__nv_bfloat16>(d, a.registers, b.registers, EMULATION_SITE);
}

inline void multiply(float (&d)[4], const FragmentA<f16> &a, const FragmentB<f16> &b) {
    emulation::multiply<__half>(d, a.registers, b.registers, EMULATION_SITE);
}

inline void copy_async(void *to, const void *from, bool there) {
    emulation::copy_async(to, from, there);
}

inline void commit() { emulation::commit(); }

template <int N> inline void wait() { emulation::wait(N); }

#endif
