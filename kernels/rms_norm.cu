// Root-mean-square normalisation, y_i = w_i (x_i / sqrt(mean_j x_j^2 + eps)).
//
// A row is a warp's or a block's (common/rows.cuh). It is read twice, the second time from cache:
// one pass for the mean of squares, one for the result. Bound by memory: 2 d elements a row.
//
// Requires ceil(n / blockDim.y) blocks. Sums in f32, over threads as a tree.
//
//   x       [n, d]  rows at any strides
//   weight  [d]     f32
//   y       [n, d]  contiguous
#include "common/rows.cuh"

template <typename T>
__device__ void rms_norm(const T *x, const float *weight, T *y, const Rows &rows, size_t n, size_t d,
                         float eps) {
    const size_t row = own_row();
    if (row >= n) {
        return;
    }
    constexpr int N = PACK<T>;
    x += start_of(rows, row);
    y += row * d;
    const bool packed = aligned(x) && aligned(y) && aligned(weight);

    float squares = 0.0f;
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float value : values) {
            squares = fmaf(value, value, squares);
        }
    });
    const float scale = 1.0f / sqrtf(over_row<Sum>(squares) / float(d) + eps);
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n], weights[width.n];
        load(x + i, values);
        load(weight + i, weights);
        for (int j = 0; j < width.n; ++j) {
            values[j] = weights[j] * (values[j] * scale);
        }
        store(values, y + i);
    });
}

#define RMS_NORM(dtype, T)                                                                         \
    KERNEL(rms_norm_##dtype)                                                                       \
    (const T *x, const float *weight, T *y, Rows rows, size_t n, size_t d, float eps) {            \
        rms_norm(x, weight, y, rows, n, d, eps);                                                   \
    }                                                                                              \
    EXPORT(rms_norm_##dtype)
EVERY_DTYPE(RMS_NORM)
