// Kernels with a fault each, which the emulation must find, and their sound forms.
#include "common/mma.cuh"

// y_i = x_{n - 1 - i} through shared memory; n = blockDim.x.
template <bool BARRIER> __device__ void turn_round(const float *x, float *y) {
    DYNAMIC_SHARED(float, values);
    values[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) {
        __syncthreads();
    }
    y[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

KERNEL(planted_turn_round)(const float *x, float *y) { turn_round<true>(x, y); }
EXPORT(planted_turn_round)
KERNEL(planted_missing_barrier)(const float *x, float *y) { turn_round<false>(x, y); }
EXPORT(planted_missing_barrier)

// Every thread adds its neighbour's number; lanes of one warp, without __syncwarp.
KERNEL(planted_missing_warp_barrier)(const float *x, float *y) {
    __shared__ float values[32];
    values[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = values[threadIdx.x ^ 1];
}
EXPORT(planted_missing_warp_barrier)

// Half of the threads take another barrier.
KERNEL(planted_divergent_barrier)(float *y) {
    if (threadIdx.x < blockDim.x / 2) {
        __syncthreads();
        y[threadIdx.x] = 1.0f;
    } else {
        y[threadIdx.x] = 2.0f;
        __syncthreads();
    }
}
EXPORT(planted_divergent_barrier)

// The last thread leaves before the barrier.
KERNEL(planted_early_end)(float *y) {
    if (threadIdx.x == blockDim.x - 1) {
        return;
    }
    __syncthreads();
    y[threadIdx.x] = 1.0f;
}
EXPORT(planted_early_end)

// Odd lanes do not take part in a shuffle of the whole warp.
KERNEL(planted_divergent_shuffle)(float *y) {
    float x = float(threadIdx.x);
    if (threadIdx.x % 2 == 0) {
        x = __shfl_xor_sync(WHOLE_WARP, x, 2);
    }
    __syncthreads();
    y[threadIdx.x] = x;
}
EXPORT(planted_divergent_shuffle)

// Reads one number behind x.
KERNEL(planted_read_beyond)(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
EXPORT(planted_read_beyond)

// Writes one number behind the dynamic shared memory.
KERNEL(planted_shared_overrun)(const float *x, float *y) {
    DYNAMIC_SHARED(float, values);
    values[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = values[1];
}
EXPORT(planted_shared_overrun)

// Writes one number behind static shared memory.
KERNEL(planted_static_overrun)(const float *x, float *y) {
    __shared__ float values[32];
    values[threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = values[1];
}
EXPORT(planted_static_overrun)

// Overflows an int.
KERNEL(planted_overflow)(const int *x, int *y) { y[threadIdx.x] = x[threadIdx.x] + 0x7fffffff; }
EXPORT(planted_overflow)

// A 16-byte access where 4 bytes are aligned.
KERNEL(planted_misaligned)(const float *x, float *y) {
    const float4 four = *reinterpret_cast<const float4 *>(x + 1);
    y[threadIdx.x] = four.x;
}
EXPORT(planted_misaligned)

// Waits for what never comes.
KERNEL(planted_runaway)(volatile float *y) {
    while (y[0] == 0.0f) {
    }
}
EXPORT(planted_runaway)

// Writes where its argument points.
KERNEL(planted_write)(float *y) { *y = 1.0f; }
EXPORT(planted_write)

// Needs more stack than a thread has.
__device__ __noinline__ float deep(float x, int n) {
    volatile float values[256];
    values[n % 256] = x;
    return n == 0 ? values[0] : values[n % 256] + deep(x, n - 1);
}
KERNEL(planted_deep)(float *y) { *y = deep(*y, 10000); }
EXPORT(planted_deep)

// y_i = x_{n - 1 - i} through copies to shared memory; a fault is not to wait for them, or to begin
// the next one while others still read.
template <bool WAIT, bool EARLY> __device__ void turn_round_copied(const float *x, float *y) {
    DYNAMIC_SHARED(float, values);
    const unsigned i = threadIdx.x;
    const bool copies = i < blockDim.x / 4;
    if (copies) {
        copy_async(values + 4 * i, x + 4 * i, true);
    }
    commit();
    if (WAIT) {
        wait<0>();
    }
    __syncthreads();
    if (EARLY && copies) {
        copy_async(values + 4 * i, x, false);
    }
    y[i] = values[blockDim.x - 1 - i];
}

KERNEL(planted_copy)(const float *x, float *y) { turn_round_copied<true, false>(x, y); }
EXPORT(planted_copy)
KERNEL(planted_unwaited_copy)(const float *x, float *y) { turn_round_copied<false, false>(x, y); }
EXPORT(planted_unwaited_copy)
KERNEL(planted_early_copy)(const float *x, float *y) { turn_round_copied<true, true>(x, y); }
EXPORT(planted_early_copy)

// Matrices that are not in shared memory, or at no multiple of 16 bytes there.
KERNEL(planted_matrices_outside)(float *y) {
    uint32_t registers[4];
    load_matrices(registers, y, false);
}
EXPORT(planted_matrices_outside)
KERNEL(planted_matrices_misaligned)(float *) {
    DYNAMIC_SHARED(float, values);
    uint32_t registers[4];
    load_matrices(registers, values + 1, false);
}
EXPORT(planted_matrices_misaligned)

// Copies with one end at no multiple of 16 bytes, or into global memory.
KERNEL(planted_copy_outside)(float *y) { copy_async(y, y, true); }
EXPORT(planted_copy_outside)
KERNEL(planted_copy_misaligned)(float *y) {
    DYNAMIC_SHARED(float, values);
    copy_async(values, y + 1, true);
}
EXPORT(planted_copy_misaligned)

// A product without its last lane.
KERNEL(planted_divergent_product)(float *y) {
    Accumulator d = {};
    if (threadIdx.x % WARP != 31) {
        mma(d, FragmentA<bf16>(), FragmentB<bf16>());
    }
    __syncthreads();
    y[threadIdx.x] = d.values[0];
}
EXPORT(planted_divergent_product)
