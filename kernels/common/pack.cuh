// Sixteen bytes at once: the widest access of a thread.
#pragma once

#include "device.cuh"

// N numbers in storage, moved together when they are 16 bytes.
template <typename T, int N> struct alignas(sizeof(T) * N) Pack {
    T values[N];
};

// Numbers of a 16-byte access.
template <typename T> constexpr int PACK = 16 / sizeof(T);

// Whether a pointer can be accessed 16 bytes at a time.
__device__ inline bool aligned(const void *pointer) {
    return (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
}

// N numbers from `from`, in f32. 16-byte accesses: requires aligned(from), and N a multiple of
// PACK<T>; N == 1 is a single number anywhere.
template <int N, typename T> __device__ inline void load(const T *from, float (&to)[N]) {
    if constexpr (N == 1) {
        to[0] = widen(*from);
    } else {
        static_assert(N % PACK<T> == 0, "whole packs");
        using Bytes = Pack<T, PACK<T>>;
#pragma unroll
        for (int pack = 0; pack < N / PACK<T>; ++pack) {
            const Bytes bytes = *(reinterpret_cast<const Bytes *>(from) + pack);
#pragma unroll
            for (int i = 0; i < PACK<T>; ++i) {
                to[pack * PACK<T> + i] = widen(bytes.values[i]);
            }
        }
    }
}

// The reverse of load: N numbers, rounded to storage.
template <int N, typename T> __device__ inline void store(const float (&from)[N], T *to) {
    if constexpr (N == 1) {
        *to = narrow<T>(from[0]);
    } else {
        static_assert(N % PACK<T> == 0, "whole packs");
        using Bytes = Pack<T, PACK<T>>;
#pragma unroll
        for (int pack = 0; pack < N / PACK<T>; ++pack) {
            Bytes bytes;
#pragma unroll
            for (int i = 0; i < PACK<T>; ++i) {
                bytes.values[i] = narrow<T>(from[pack * PACK<T> + i]);
            }
            *(reinterpret_cast<Bytes *>(to) + pack) = bytes;
        }
    }
}
