// What the language gives, written out for the tests.
#include "common/device.cuh"

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

// Bytes of two words by selectors, and a product and a sum that are not one operation.
KERNEL(language_bytes)(uint32_t *y, float *x) {
    const unsigned selectors[] = {0x3210u, 0x7654u, 0x7650u, 0x0123u, 0x5146u};
    for (unsigned selector : selectors) {
        *y++ = __byte_perm(0x33221100u, 0x77665544u, selector);
    }
    x[3] = __fadd_rn(__fmul_rn(x[0], x[1]), x[2]);
}
EXPORT(language_bytes)

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
