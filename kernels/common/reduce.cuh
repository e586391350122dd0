// Reductions over a warp and over the threads of a row. Deterministic: the order of the operations
// depends on the launch alone, and every thread gets the same bits.
#pragma once

#include "device.cuh"

struct Sum {
    static constexpr float neutral = 0.0f;
    __device__ static float join(float a, float b) { return a + b; }
};

// The larger; a NaN loses against a number.
struct Max {
    static constexpr float neutral = -__builtin_huge_valf();
    __device__ static float join(float a, float b) { return fmaxf(a, b); }
};

// Over the 32 lanes of a warp, all of which must call it.
template <typename Op> __device__ inline float over_warp(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        x = Op::join(x, __shfl_xor_sync(WHOLE_WARP, x, step));
    }
    return x;
}

// Over the threads of a row (rows.cuh): a warp where blockDim.x is 32, else the whole block, all
// of whose threads must call it then.
template <typename Op> __device__ inline float over_row(float x) {
    x = over_warp<Op>(x);
    if (blockDim.x == WARP) {
        return x;
    }
    __shared__ float parts[WARP];
    const unsigned lane = threadIdx.x % WARP;
    // Those of the reduction before may still be read.
    __syncthreads();
    if (lane == 0) {
        parts[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    return over_warp<Op>(lane < blockDim.x / WARP ? parts[lane] : Op::neutral);
}
