// Products of queries and keys on plain cores, a tile at a time, for kernels that look at scores
// beside the forward pass.
//
// A block of 256 threads multiplies 64 queries by 64 keys, for vectors of any width: 32 numbers of
// each lie in shared memory, in f32, and every thread has 4 x 4 products in registers, each one a
// chain of fused multiply-adds in the order of the vectors' numbers.
#pragma once

#include "attention.cuh"
#include "pack.cuh"

// What a row of the batch holds, from its length and offset in device memory, which no host has
// read.
struct Extent {
    size_t length, offset; // 0 where they do not fit
    bool fits;             // into the queries and keys that there are
};

__device__ inline Extent extent(const uint32_t *lengths, const uint32_t *offsets, size_t row,
                                size_t n_queries, size_t n_keys) {
    const size_t length = lengths[row], offset = offsets[row];
    if (length > n_queries || offset + length > n_keys) {
        return {0, 0, false};
    }
    return {length, offset, true};
}

__device__ inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// Vectors of one head behind one another: where the first one is and the step between them.
template <typename T> struct Vectors {
    const T *first;
    size_t step;
};

constexpr int TILE = 64;           // queries and keys of a tile
constexpr int TILE_THREADS = 256;  // 16 x 16
constexpr int PER_THREAD = 4;      // products along each axis

// The queries of a thread are four behind one another, its keys every sixteenth.
__device__ inline int tile_query(int i) { return int(threadIdx.x) / 16 * PER_THREAD + i; }
__device__ inline int tile_key(int j) { return int(threadIdx.x) % 16 + 16 * j; }

constexpr int DEPTH = 32; // of a part of the vectors
// Rows of packs of four in other banks than the rows beside them.
constexpr int DEPTH_STRIDE = DEPTH + 4;

// `count` vectors' numbers from `start` on into the rows of a part; zeros where nothing is.
template <typename T>
__device__ inline void load_part(float *part, Vectors<T> from, int count, size_t start, size_t d) {
    for (int i = int(threadIdx.x); i < TILE * DEPTH; i += TILE_THREADS) {
        const int row = i / DEPTH, at = i % DEPTH;
        const bool there = row < count && start + at < d;
        part[row * DEPTH_STRIDE + at] = there ? widen(from.first[row * from.step + start + at]) : 0;
    }
}

// products[i][j] = q . k for the queries and keys of this thread; 0 beyond the n_queries and n_keys
// that are there. All threads of the block must call it.
template <typename T>
__device__ inline void tile_products(Vectors<T> q, int n_queries, Vectors<T> k, int n_keys, size_t d,
                                     float (&products)[PER_THREAD][PER_THREAD]) {
    alignas(16) __shared__ float q_part[TILE * DEPTH_STRIDE], k_part[TILE * DEPTH_STRIDE];
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) {
            products[i][j] = 0.0f;
        }
    }
    for (size_t start = 0; start < d; start += DEPTH) {
        // The part before may still be read.
        __syncthreads();
        load_part(q_part, q, n_queries, start, d);
        load_part(k_part, k, n_keys, start, d);
        __syncthreads();
#pragma unroll
        for (int at = 0; at < DEPTH; at += 4) {
            float queries[PER_THREAD][4], keys[PER_THREAD][4];
#pragma unroll
            for (int i = 0; i < PER_THREAD; ++i) {
                load(q_part + tile_query(i) * DEPTH_STRIDE + at, queries[i]);
                load(k_part + tile_key(i) * DEPTH_STRIDE + at, keys[i]);
            }
#pragma unroll
            for (int part = 0; part < 4; ++part) {
#pragma unroll
                for (int i = 0; i < PER_THREAD; ++i) {
#pragma unroll
                    for (int j = 0; j < PER_THREAD; ++j) {
                        products[i][j] = fmaf(queries[i][part], keys[j][part], products[i][j]);
                    }
                }
            }
        }
    }
}
