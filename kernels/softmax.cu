// Softmax over the last axis, y_i = exp(x_i - m) / sum_j exp(x_j - m), m = max_j x_j.
//
// A row is a warp's or a block's (common/rows.cuh), read three times, twice from cache: for the
// maximum, the sum, the result. Minus infinity gives 0; a row with a NaN, with plus infinity, or of
// minus infinities alone gives NaN.
//
// Requires ceil(n / blockDim.y) blocks. Sums in f32, over threads as a tree.
//
//   x  [n, d]  rows at any strides
//   y  [n, d]  contiguous
#include "common/rows.cuh"

template <typename T>
__device__ void softmax(const T *x, T *y, const Rows &rows, size_t n, size_t d) {
    const size_t row = own_row();
    if (row >= n) {
        return;
    }
    constexpr int N = PACK<T>;
    x += start_of(rows, row);
    y += row * d;
    const bool packed = aligned(x) && aligned(y);

    float max = Max::neutral;
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float value : values) {
            max = Max::join(max, value);
        }
    });
    max = over_row<Max>(max);
    float sum = 0.0f;
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float value : values) {
            sum += expf(value - max);
        }
    });
    sum = over_row<Sum>(sum);
    share<N>(d, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float &value : values) {
            value = expf(value - max) / sum;
        }
        store(values, y + i);
    });
}

#define SOFTMAX(dtype, T)                                                                          \
    KERNEL(softmax_##dtype)(const T *x, T *y, Rows rows, size_t n, size_t d) {                     \
        softmax(x, y, rows, n, d);                                                                 \
    }                                                                                              \
    EXPORT(softmax_##dtype)
EVERY_DTYPE(SOFTMAX)
