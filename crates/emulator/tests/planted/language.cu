// What the language gives, written out for the tests.
#include "common/mma.cuh"

// Where a thread is: 8 numbers for each, in order of blocks and threads.
KERNEL(language_places)(uint32_t *y) {
    const size_t block = blockIdx.x + size_t(gridDim.x) * (blockIdx.y + size_t(gridDim.y) * blockIdx.z);
    const size_t thread = threadIdx.x + size_t(blockDim.x) * (threadIdx.y + size_t(blockDim.y) * threadIdx.z);
    uint32_t *own = y + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    const uint32_t place[6] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z};
    for (int i = 0; i < 6; ++i) {
        own[i] = place[i];
    }
}
EXPORT(language_places)

// Collectives of one warp, a row of 32 numbers for each.
KERNEL(language_collectives)(uint32_t *y) {
    const uint32_t lane = threadIdx.x % WARP, x = 100 + lane;
    uint32_t rows[14] = {
        __shfl_sync(WHOLE_WARP, x, 5),
        __shfl_sync(WHOLE_WARP, x, 3, 8),
        __shfl_up_sync(WHOLE_WARP, x, 3),
        __shfl_up_sync(WHOLE_WARP, x, 1, 4),
        __shfl_down_sync(WHOLE_WARP, x, 30),
        __shfl_down_sync(WHOLE_WARP, x, 2, 16),
        __shfl_xor_sync(WHOLE_WARP, x, 9),
        __shfl_xor_sync(WHOLE_WARP, x, 16, 16),
        __ballot_sync(WHOLE_WARP, lane % 3 == 0),
        uint32_t(__any_sync(WHOLE_WARP, lane == 7)),
        uint32_t(__all_sync(WHOLE_WARP, lane != 7)),
        __match_any_sync(WHOLE_WARP, lane % 5),
        uint32_t(__shfl_xor_sync(WHOLE_WARP, uint64_t(x) << 40, 1) >> 40),
        0,
    };
    if (lane < 4) {
        rows[13] = __ballot_sync(0xfu, lane != 2);
    }
    __syncwarp();
    rows[13] += uint32_t(__syncthreads_count(lane < 9)) << 8;
    for (int i = 0; i < 14; ++i) {
        y[i * WARP + lane] = rows[i];
    }
}
EXPORT(language_collectives)

// Every thread of every block counts, adds, and takes its bit.
KERNEL(language_atomics)(uint32_t *y, float *sum) {
    atomicAdd(&y[0], 1u);
    atomicMax(&y[1], threadIdx.x);
    atomicMin(&y[2], threadIdx.x);
    atomicOr(&y[3], 1u << threadIdx.x % 32);
    atomicAnd(&y[4], ~(1u << threadIdx.x % 16));
    if (atomicCAS(&y[5], 0u, 7u) == 0) {
        atomicExch(&y[6], 9u);
    }
    atomicSub(&y[7], 2u);
    atomicAdd(sum, 0.5f);
}
EXPORT(language_atomics)

// Half precision and bfloat16 of every x, and back.
KERNEL(language_numbers)(const float *x, f16 *half, bf16 *brain, float *half_back, float *brain_back, size_t n) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) {
        half[i] = narrow<f16>(x[i]);
        brain[i] = narrow<bf16>(x[i]);
        half_back[i] = widen(half[i]);
        brain_back[i] = widen(brain[i]);
    }
}
EXPORT(language_numbers)

// Products of fragments, whose registers are given: 32 lanes' of A, B and D.
#define LANGUAGE_MMA(dtype, T)                                                                     \
    KERNEL(language_mma_##dtype)(const uint32_t *a, const uint32_t *b, float *d) {                 \
        const uint32_t lane = threadIdx.x;                                                         \
        FragmentA<T> left;                                                                         \
        FragmentB<T> right;                                                                        \
        Accumulator sums;                                                                          \
        for (int i = 0; i < 4; ++i) {                                                              \
            left.registers[i] = a[4 * lane + i];                                                   \
            right.registers[i / 2] = b[2 * lane + i / 2];                                          \
            sums.values[i] = d[4 * lane + i];                                                      \
        }                                                                                          \
        mma(sums, left, right);                                                                    \
        for (int i = 0; i < 4; ++i) {                                                              \
            d[4 * lane + i] = sums.values[i];                                                      \
        }                                                                                          \
    }                                                                                              \
    EXPORT(language_mma_##dtype)
LANGUAGE_MMA(bf16, bf16)
LANGUAGE_MMA(f16, f16)

// A tile [32, 8 P] by copies to its swizzled places, which go to `places`, and the fragments from
// its row 16 and pack 2 on: four registers of A, of two B, of two B by rows for each lane.
template <int P> __device__ void matrices(const f16 *x, uint32_t *places, uint32_t *registers) {
    DYNAMIC_SHARED(f16, tile);
    const int lane = int(threadIdx.x);
    for (int i = lane; i < 32 * P; i += WARP) {
        const int place = swizzled<P>(i / P, i % P);
        places[i] = uint32_t(place);
        copy_async(tile + 8 * place, x + 8 * i, true);
    }
    commit();
    wait<0>();
    __syncthreads();
    FragmentA<f16> a;
    FragmentB<f16> b[2], by_rows[2];
    load_matrix_a<P>(a, tile, 16, 2);
    load_matrix_b<P>(b, tile, 16, 2);
    load_matrix_b_by_rows<P>(by_rows, tile, 16, 2);
    for (int i = 0; i < 4; ++i) {
        registers[12 * lane + i] = a.registers[i];
        registers[12 * lane + 4 + i] = b[i / 2].registers[i % 2];
        registers[12 * lane + 8 + i] = by_rows[i / 2].registers[i % 2];
    }
}
#define LANGUAGE_MATRICES(P)                                                                       \
    KERNEL(language_matrices_##P)(const f16 *x, uint32_t *places, uint32_t *registers) {           \
        matrices<P>(x, places, registers);                                                         \
    }                                                                                              \
    EXPORT(language_matrices_##P)
LANGUAGE_MATRICES(4)
LANGUAGE_MATRICES(8)
LANGUAGE_MATRICES(16)

// (x y) z for x, y, z [16, 16] whose rows are x's, y's columns, z's rows: the result of the first
// product is rounded to the A of the second. The second half of y comes as zeros.
KERNEL(language_chain_bf16)(const bf16 *x, const bf16 *y, const bf16 *z, float *result) {
    DYNAMIC_SHARED(bf16, tiles);
    const int lane = int(threadIdx.x), row = lane / 2, pack = lane % 2;
    const bf16 *const sources[3] = {x, y, z};
    for (int i = 0; i < 3; ++i) {
        const bool there = i != 1 || row < 8;
        copy_async(tiles + 256 * i + 8 * swizzled<2>(row, pack), sources[i] + 8 * lane, there);
        commit();
    }
    wait<1>();
    __syncwarp();
    FragmentA<bf16> a;
    FragmentB<bf16> b[2];
    Accumulator sums[2] = {};
    load_matrix_a<2>(a, tiles, 0, 0);
    load_matrix_b<2>(b, tiles + 256, 0, 0);
    mma(sums[0], a, b[0]);
    mma(sums[1], a, b[1]);
    a = narrow_to_a<bf16>(sums[0], sums[1]);
    wait<0>();
    __syncwarp();
    load_matrix_b_by_rows<2>(b, tiles + 512, 0, 0);
    for (int half = 0; half < 2; ++half) {
        Accumulator d = {};
        mma(d, a, b[half]);
        for (int i = 0; i < 4; ++i) {
            const int at = (accumulator_row() + i / 2 * 8) * 16 + half * 8 + accumulator_column();
            result[at + i % 2] = d.values[i];
        }
    }
}
EXPORT(language_chain_bf16)
