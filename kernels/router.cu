// From router logits to the chosen experts: p = softmax over all experts, the k largest logits in
// descending order, and w, the p of those, or each divided by the sum of the k.
//
// One warp per token. A lane holds every 32nd expert in registers, from one to sixteen, so the row
// is read once. Each of k rounds takes the largest that is left over all lanes; lane i keeps what
// round i found. Equal logits, 0 and -0 among them, go to the lower index; a NaN comes after
// everything else. A row with a NaN, with plus infinity, or of minus infinities alone has p and w
// NaN; minus infinity beside numbers gives 0.
//
// Requires blocks (32, r), ceil(n / r) of them; 1 <= e <= 512; 1 <= k <= 32 and k <= e. Sums in
// f32, over lanes as a tree.
//
//   logits   [n, e]  f32, rows at any strides
//   probs    [n, e]  f32, contiguous
//   indices  [n, k]  u32, contiguous
//   weights  [n, k]  f32, contiguous
#include "common/rows.cuh"

// What orders logits: as the numbers do, NaN below all of them. Never 0.
__device__ inline uint32_t rank(float x) {
    constexpr uint32_t ZERO = 0x80000000u;
    if (x != x) {
        return 1;
    }
    if (x == 0.0f) {
        return ZERO;
    }
    const uint32_t bits = __float_as_uint(x);
    return bits & ZERO ? ~bits : bits | ZERO;
}

// The largest over the 32 lanes of a warp, all of which must call it.
__device__ inline uint64_t largest(uint64_t x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        const uint64_t other = __shfl_xor_sync(WHOLE_WARP, x, step);
        x = other > x ? other : x;
    }
    return x;
}

// For rows of at most 32 N experts; the pointers are those of the row.
template <int N>
__device__ void route(const float *logits, float *probs, uint32_t *indices, float *weights, uint32_t e,
                      uint32_t k, bool renormalise) {
    const uint32_t lane = threadIdx.x;
    // Of an expert that is not there or was taken: 0.
    uint32_t ranks[N];
    float p[N];
    float max = Max::neutral;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t expert = i * WARP + lane;
        const bool there = expert < e;
        p[i] = there ? logits[expert] : Max::neutral;
        ranks[i] = there ? rank(p[i]) : 0;
        max = Max::join(max, p[i]);
    }
    max = over_warp<Max>(max);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        p[i] = expf(p[i] - max);
        sum += p[i];
    }
    sum = over_warp<Sum>(sum);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t expert = i * WARP + lane;
        p[i] /= sum;
        if (expert < e) {
            probs[expert] = p[i];
        }
    }

    uint32_t index = 0;
    float weight = 0.0f;
    for (uint32_t round = 0; round < k; ++round) {
        // The rank above the index inverted: of equal ranks the lower index is the larger.
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const uint64_t own = uint64_t(ranks[i]) << 32 | ~(i * WARP + lane);
            best = own > best ? own : best;
        }
        const uint32_t chosen = ~uint32_t(largest(best));
        float of_chosen = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (i * WARP + lane == chosen) {
                of_chosen = p[i];
                ranks[i] = 0;
            }
        }
        of_chosen = __shfl_sync(WHOLE_WARP, of_chosen, int(chosen % WARP));
        if (lane == round) {
            index = chosen;
            weight = of_chosen;
        }
    }
    if (renormalise) {
        weight /= over_warp<Sum>(weight);
    }
    if (lane < k) {
        indices[lane] = index;
        weights[lane] = weight;
    }
}

__device__ inline void router(const float *logits, float *probs, uint32_t *indices, float *weights,
                              const Rows &rows, size_t n, size_t e, size_t k, bool renormalise) {
    const size_t row = own_row();
    if (row >= n) {
        return;
    }
    logits += start_of(rows, row);
    probs += row * e;
    indices += row * k;
    weights += row * k;
    const uint32_t n_experts = uint32_t(e), n_chosen = uint32_t(k);
    if (e <= 1 * WARP) {
        route<1>(logits, probs, indices, weights, n_experts, n_chosen, renormalise);
    } else if (e <= 2 * WARP) {
        route<2>(logits, probs, indices, weights, n_experts, n_chosen, renormalise);
    } else if (e <= 4 * WARP) {
        route<4>(logits, probs, indices, weights, n_experts, n_chosen, renormalise);
    } else if (e <= 8 * WARP) {
        route<8>(logits, probs, indices, weights, n_experts, n_chosen, renormalise);
    } else {
        route<16>(logits, probs, indices, weights, n_experts, n_chosen, renormalise);
    }
}

#define ROUTER(variant, renormalise)                                                               \
    KERNEL(router_##variant##_f32)                                                                 \
    (const float *logits, float *probs, uint32_t *indices, float *weights, Rows rows, size_t n,    \
     size_t e, size_t k) {                                                                         \
        router(logits, probs, indices, weights, rows, n, e, k, renormalise);                       \
    }                                                                                              \
    EXPORT(router_##variant##_f32)
ROUTER(softmax, false)
ROUTER(softmax_renormalised, true)
