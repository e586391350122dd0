// What every kernel includes first: the language, the number types, entry points.
//
// A kernel is compiled twice: by nvcc for the GPU, and by g++ for the emulation that the tests
// run (crates/emulator), where this header includes the emulation in place of CUDA's own headers.
//
// Entry points are `extern "C"`, named <op>_<variant>_<dtype>:
//
//     KERNEL(rms_norm_bf16)(const bf16 *x, bf16 *y, size_t d) { rms_norm(x, y, d); }
//     EXPORT(rms_norm_bf16)
//
// or both lines as a macro of dtype and type, given to EVERY_DTYPE.
//
// BOUNDED_KERNEL(threads, blocks, name) is the same for a kernel whose registers must allow so many
// blocks of so many threads on a multiprocessor at once.
//
// Dynamic shared memory is named by DYNAMIC_SHARED(T, name) inside a kernel, static shared memory
// by __shared__ as usual.
//
// Two paths. DEVICE_INSTRUCTIONS is defined where tensor-core instructions, cp.async and other
// inline PTX can be compiled, which is under nvcc alone. What needs them stands behind this one
// #ifdef, as a function or an entry point with a plain twin of the same interface: the twin is
// what emulation runs. An entry point behind it has its twin as a further entry point,
// <op>_<variant>_plain_<dtype>, compiled always, so that on a GPU the two can be compared.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEVICE_INSTRUCTIONS
#define KERNEL(name) extern "C" __global__ void name
#define BOUNDED_KERNEL(threads, blocks, name)                                                      \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name
#define EXPORT(name)
#define DYNAMIC_SHARED(T, name)                                                                    \
    extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];                         \
    T *const name = reinterpret_cast<T *>(dynamic_shared_memory)

#else

#include "emulation.h"

#define KERNEL(name) extern "C" void name
#define BOUNDED_KERNEL(threads, blocks, name) extern "C" void name
#define EXPORT(name) static const emulation::Export export_##name(#name, name);
#define DYNAMIC_SHARED(T, name) T *const name = static_cast<T *>(emulation::dynamic_shared())

#endif

using bf16 = __nv_bfloat16;
using f16 = __half;
using f32 = float;

// One line per dtype: X(bf16, bf16) X(f16, f16) X(f32, float).
#define EVERY_DTYPE(X) X(bf16, bf16) X(f16, f16) X(f32, float)

constexpr int WARP = 32;
constexpr unsigned WHOLE_WARP = 0xffffffffu;

// Storage to f32, exact; f32 to storage, to the nearest, ties to even.
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(f16 x) { return __half2float(x); }
__device__ inline float widen(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline f16 narrow<f16>(float x) { return __float2half_rn(x); }
template <> __device__ inline bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }
