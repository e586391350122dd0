// New tokens' keys and values, copied to where a cache holds those of each row's positions:
// keys[b, offsets[b] + i] = k[b, i] for i below lengths[b], and values alike.
//
// One block per token for its keys, one for its values; its threads share all heads, 16 bytes at
// once. Lengths and offsets stand in device memory, so that a captured graph can be run for any
// step; what would lie beyond the cache is left out, for it cannot be refused here.
//
// Requires b * t blocks along x and 2 along y, and h_kv times either width below 2^32.
//
//   k        [b, t, h_kv, d]         the outer axes at any strides
//   v        [b, t, h_kv, d_value]   the outer axes at any strides
//   lengths  [b]                     u32: new tokens of each row
//   offsets  [b]                     u32: the position of a row's first one
//   keys     [b, s, h_kv, d]         contiguous, written in place
//   values   [b, s, h_kv, d_value]   contiguous, written in place
#include "common/attention.cuh"
#include "common/pack.cuh"

// All heads of one token.
template <typename T>
__device__ void copy_token(const T *from, size_t head_stride, T *to, size_t h, size_t d) {
    using Bytes = Pack<T, PACK<T>>;
    constexpr int N = PACK<T>;
    const bool packed = d % N == 0 && head_stride % N == 0 && aligned(from) && aligned(to);
    const unsigned parts = unsigned(packed ? d / N : d);
    for (size_t i = threadIdx.x; i < h * parts; i += blockDim.x) {
        const size_t head = unsigned(i) / parts, part = unsigned(i) % parts;
        if (packed) {
            *reinterpret_cast<Bytes *>(to + head * d + part * N) =
                *reinterpret_cast<const Bytes *>(from + head * head_stride + part * N);
        } else {
            to[head * d + part] = from[head * head_stride + part];
        }
    }
}

template <typename T>
__device__ void cache_append(const T *k, const T *v, const uint32_t *lengths, const uint32_t *offsets,
                             T *keys, T *values, const Heads &k_at, const Heads &v_at, size_t t,
                             size_t s, size_t h, size_t d, size_t d_value) {
    const size_t row = blockIdx.x / unsigned(t), token = blockIdx.x % unsigned(t);
    const size_t pos = offsets[row] + token;
    if (token >= lengths[row] || pos >= s) {
        return;
    }
    const size_t place = (row * s + pos) * h;
    if (blockIdx.y == 0) {
        copy_token(k + start_of(k_at, row, token, 0), k_at.head, keys + place * d, h, d);
    } else {
        copy_token(v + start_of(v_at, row, token, 0), v_at.head, values + place * d_value, h, d_value);
    }
}

#define CACHE_APPEND(dtype, T)                                                                     \
    KERNEL(cache_append_##dtype)                                                                   \
    (const T *k, const T *v, const uint32_t *lengths, const uint32_t *offsets, T *keys, T *values, \
     Heads k_at, Heads v_at, size_t t, size_t s, size_t h, size_t d, size_t d_value) {             \
        cache_append(k, v, lengths, offsets, keys, values, k_at, v_at, t, s, h, d, d_value);       \
    }                                                                                              \
    EXPORT(cache_append_##dtype)
EVERY_DTYPE(CACHE_APPEND)
