// Activation functions, y = f(x), and their gated forms, y = f(gate) up, elementwise.
//
// Each block takes one piece of a row, each thread 16 bytes of it. Bound by memory.
//
// Requires blocks of 128 threads, n * pieces of them, pieces = ceil(d / elements of 128 * 16 bytes).
//
//   x, gate, up  [n, d]  rows at any strides: the halves of a fused projection are such rows
//   y            [n, d]  contiguous
#include "common/activations.cuh"
#include "common/rows.cuh"

constexpr unsigned THREADS = 128;

template <typename F, bool GATED, typename T>
__device__ void activation(const T *x, const T *up, T *y, const Rows &x_rows, const Rows &up_rows,
                           size_t d) {
    constexpr int N = PACK<T>;
    constexpr size_t piece = THREADS * N;
    const unsigned pieces = unsigned((d + piece - 1) / piece);
    const size_t row = blockIdx.x / pieces;
    const size_t first = blockIdx.x % pieces * piece;
    x += start_of(x_rows, row) + first;
    y += row * d + first;
    if constexpr (GATED) {
        up += start_of(up_rows, row) + first;
    }
    const bool packed = aligned(x) && aligned(y) && (!GATED || aligned(up));
    share<N>(d - first < piece ? d - first : piece, packed, [&](auto width, size_t i) {
        float values[width.n];
        load(x + i, values);
        for (float &value : values) {
            value = F::at(value);
        }
        if constexpr (GATED) {
            float factors[width.n];
            load(up + i, factors);
            for (int j = 0; j < width.n; ++j) {
                values[j] *= factors[j];
            }
        }
        store(values, y + i);
    });
}

#define ACTIVATION(name, F, dtype, T)                                                              \
    KERNEL(activation_##name##_##dtype)(const T *x, T *y, Rows rows, size_t d) {                   \
        activation<F, false, T>(x, nullptr, y, rows, rows, d);                                     \
    }                                                                                              \
    EXPORT(activation_##name##_##dtype)                                                            \
    KERNEL(activation_gated_##name##_##dtype)                                                      \
    (const T *gate, const T *up, T *y, Rows gate_rows, Rows up_rows, size_t d) {                   \
        activation<F, true, T>(gate, up, y, gate_rows, up_rows, d);                                \
    }                                                                                              \
    EXPORT(activation_gated_##name##_##dtype)
#define ACTIVATIONS(dtype, T)                                                                      \
    ACTIVATION(silu, Silu, dtype, T)                                                               \
    ACTIVATION(gelu, Gelu, dtype, T)                                                               \
    ACTIVATION(gelu_tanh, GeluTanh, dtype, T)                                                      \
    ACTIVATION(relu, Relu, dtype, T)
EVERY_DTYPE(ACTIVATIONS)
