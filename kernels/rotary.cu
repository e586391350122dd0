// Rotary position embedding in the half-split form: of the first r = 2 half elements of a head,
// y_i = x_i cos - x_{i + half} sin, y_{i + half} = x_{i + half} cos + x_i sin; the others stay.
//
// One block per token, whose threads share the pairs of all its heads, 16 bytes of each half at
// once. Positions stand in device memory, so that a captured graph can be run for any; one beyond
// the tables gives NaN, for it cannot be refused here.
//
// Requires b * t blocks of one dimension, and h * d below 2^32. f32 products and sums.
//
//   x        [b, t, h, d]  the outer axes at any strides
//   cos, sin [n_pos, half] f32
//   offsets  [b]           u32: the position of a row's first token
//   y        [b, t, h, d]  contiguous
#include "common/rows.cuh"

template <int N, typename T>
__device__ void rotate(const T *x, T *y, const float *cos, const float *sin, size_t half) {
    float low[N], high[N], c[N], s[N], y_low[N], y_high[N];
    load(x, low);
    load(x + half, high);
    load(cos, c);
    load(sin, s);
    for (int i = 0; i < N; ++i) {
        y_low[i] = low[i] * c[i] - high[i] * s[i];
        y_high[i] = high[i] * c[i] + low[i] * s[i];
    }
    store(y_low, y);
    store(y_high, y + half);
}

template <typename T>
__device__ void rotary(const T *x, const float *cos, const float *sin, const uint32_t *offsets, T *y,
                       const Rows &strides, size_t t, size_t h, size_t d, size_t half, size_t n_pos) {
    constexpr int N = PACK<T>;
    const size_t row = blockIdx.x / unsigned(t);
    const size_t token = blockIdx.x % unsigned(t);
    const size_t pos = offsets[row] + token;
    x += row * strides.strides[0] + token * strides.strides[1];
    y += size_t(blockIdx.x) * h * d;
    if (pos >= n_pos) {
        for (size_t i = threadIdx.x; i < h * d; i += blockDim.x) {
            y[i] = narrow<T>(__builtin_nanf(""));
        }
        return;
    }
    cos += pos * half;
    sin += pos * half;
    const size_t step = strides.strides[2];
    const bool packed = half % N == 0 && d % N == 0 && step % N == 0 && aligned(x) && aligned(y) &&
                        aligned(cos) && aligned(sin);
    const unsigned parts = unsigned(packed ? half / N : half);
    for (size_t i = threadIdx.x; i < h * parts; i += blockDim.x) {
        const size_t head = unsigned(i) / parts, part = unsigned(i) % parts;
        if (packed) {
            rotate<N>(x + head * step + part * N, y + head * d + part * N, cos + part * N, sin + part * N, half);
        } else {
            rotate<1>(x + head * step + part, y + head * d + part, cos + part, sin + part, half);
        }
    }
    const unsigned tail = unsigned(d - 2 * half);
    for (size_t i = threadIdx.x; i < h * tail; i += blockDim.x) {
        const size_t head = unsigned(i) / tail, element = 2 * half + unsigned(i) % tail;
        y[head * d + element] = x[head * step + element];
    }
}

#define ROTARY(dtype, T)                                                                           \
    KERNEL(rotary_##dtype)                                                                         \
    (const T *x, const float *cos, const float *sin, const uint32_t *offsets, T *y, Rows strides,  \
     size_t t, size_t h, size_t d, size_t half, size_t n_pos) {                                    \
        rotary(x, cos, sin, offsets, y, strides, t, h, d, half, n_pos);                            \
    }                                                                                              \
    EXPORT(rotary_##dtype)
EVERY_DTYPE(ROTARY)
