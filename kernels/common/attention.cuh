// What queries see and how scores are made of products: shared by every kernel of attention.
#pragma once

#include "device.cuh"

// Where the vectors of [batch, pos, head, d] start; strides in elements, the last axis contiguous.
// The same bytes as `cuda::Heads` in crates/kernels.
struct Heads {
    uint64_t batch, pos, head;
};

__device__ inline size_t start_of(const Heads &heads, size_t batch, size_t pos, size_t head) {
    return batch * size_t(heads.batch) + pos * size_t(heads.pos) + head * size_t(heads.head);
}

// How scores are formed and masked; the same bytes as `cuda::Scores` in crates/kernels.
struct Scores {
    float factor;    // what multiplies q . k: the scale, over the soft cap if there is one
    float soft_cap;  // c of c tanh(factor q . k); 0: none
    uint64_t window; // keys that a query sees, itself included; 0: all up to itself
};

// The score of a query and a key from the product of their vectors.
__device__ inline float score(const Scores &scores, float product) {
    const float scaled = scores.factor * product;
    return scores.soft_cap == 0.0f ? scaled : scores.soft_cap * tanhf(scaled);
}

// The first key that the query at an absolute position sees; the last one is its own.
__device__ inline size_t first_key(const Scores &scores, size_t position) {
    return scores.window == 0 || position < scores.window ? 0 : position + 1 - scores.window;
}
