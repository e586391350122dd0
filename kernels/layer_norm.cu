// Layer normalisation, y_i = (x_i - mu) / sqrt(var + eps) w_i + b_i, var the biased variance.
//
// A row is a warp's or a block's (common/rows.cuh), read three times, twice from cache: for a first
// mean m; for the means of x - m and of its square, which give mu and var free of the rounding of
// m, also where all x lie far from 0; for the result.
//
// Requires ceil(n / blockDim.y) blocks. Sums in f32, over threads as a tree.
//
//   x             [n, d]  rows at any strides
//   weight, bias  [d]     f32; bias may be null, which is 0
//   y             [n, d]  contiguous
#include "common/rows.cuh"

template <typename T>
__device__ void layer_norm(const T *x, const float *weight, const float *bias, T *y,
                           const Rows &rows, size_t n, size_t d, float eps) {
    const size_t row = own_row();
    if (row >= n) {
        return;
    }
    constexpr int N = PACK<T>;
    x += start_of(rows, row);
    y += row * d;
    const bool packed = aligned(x) && aligned(y) && aligned(weight) && aligned(bias);

    float sum = 0.0f;
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float value : values) {
            sum += value;
        }
    });
    const float first = over_row<Sum>(sum) / float(d);
    float rests = 0.0f, squares = 0.0f;
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float value : values) {
            const float rest = value - first;
            rests += rest;
            squares = fmaf(rest, rest, squares);
        }
    });
    const float rest = over_row<Sum>(rests) / float(d);
    const float variance = fmaf(-rest, rest, over_row<Sum>(squares) / float(d));
    const float scale = 1.0f / sqrtf(fmaxf(variance, 0.0f) + eps);
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n], weights[width.n], biases[width.n] = {};
        load(x + i, values);
        load(weight + i, weights);
        if (bias != nullptr) {
            load(bias + i, biases);
        }
        for (int j = 0; j < width.n; ++j) {
            values[j] = fmaf(weights[j], ((values[j] - first) - rest) * scale, biases[j]);
        }
        store(values, y + i);
    });
}

#define LAYER_NORM(dtype, T)                                                                       \
    KERNEL(layer_norm_##dtype)                                                                     \
    (const T *x, const float *weight, const float *bias, T *y, Rows rows, size_t n, size_t d,      \
     float eps) {                                                                                  \
        layer_norm(x, weight, bias, y, rows, n, d, eps);                                           \
    }                                                                                              \
    EXPORT(layer_norm_##dtype)
EVERY_DTYPE(LAYER_NORM)
