// Rows of a tensor whose last axis is contiguous, and how threads share them.
//
// A block is (32, r): r rows, one warp each; or (32 w, 1): one row, w warps.
#pragma once

#include "pack.cuh"
#include "reduce.cuh"

// Where rows start: up to three outer axes, the last one fastest; strides in elements. The host
// has joined axes that lie behind one another; an axis that is not there has count 1, stride 0.
// The same bytes as `cuda::Rows` in crates/kernels.
struct Rows {
    uint64_t counts[3];
    uint64_t strides[3];
};

// Offset of row `index` from the tensor's first element. There are less than 2^32 rows, and 32-bit
// divisions take a quarter of the instructions of 64-bit ones; most tensors need none.
__device__ inline size_t start_of(const Rows &rows, size_t index) {
    const uint32_t n_last = uint32_t(rows.counts[2]), n_middle = uint32_t(rows.counts[1]);
    uint32_t last = uint32_t(index), middle = 0, first = 0;
    if (rows.counts[0] != 1 || n_middle != 1) {
        first = last / n_last;
        last -= first * n_last;
        middle = first % n_middle;
        first /= n_middle;
    }
    return first * size_t(rows.strides[0]) + middle * size_t(rows.strides[1]) +
           last * size_t(rows.strides[2]);
}

// The row of this thread; may lie beyond the last one where a block has several.
__device__ inline size_t own_row() {
    return size_t(blockIdx.x) * blockDim.y + threadIdx.y;
}

// A number of elements, as a type.
template <int N> struct Width {
    static constexpr int n = N;
};

// Calls body(Width<N>(), i) for this thread's share of the elements 0 .. d of a row, N from i on
// at once where `packed`; what is left, or all, as body(Width<1>(), i).
template <int N, typename Body> __device__ inline void share(size_t d, bool packed, Body body) {
    const size_t whole = packed ? d / N * N : 0;
    for (size_t i = size_t(threadIdx.x) * N; i < whole; i += size_t(blockDim.x) * N) {
        body(Width<N>(), i);
    }
    for (size_t i = whole + threadIdx.x; i < d; i += blockDim.x) {
        body(Width<1>(), i);
    }
}
