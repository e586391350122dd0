// A mixture of experts for few tokens, at most 128 slots (token * k + rank): two products that read
// each chosen expert's weights once, for all of its tokens. moe.cu sums their results.
//
//   gate_up  hidden = f(gate x) up x
//   down     y = down hidden
//
// Bound by the bandwidth of the weights: with one token nothing else is read more than once from
// memory. Block (i, slot) takes all slots of the slot's expert if this one is the first of them,
// and else leaves; it takes 16 columns of the hidden layer or 32 of the result, a warp 2 or 4, of
// which it reads 4 rows of weights side by side, 16 bytes a lane, two steps at once: 4 KiB under way for
// each of the 16 warps on a multiprocessor, where some 25 KiB hide the latency of memory. Four slots
// are multiplied at once; of an expert with more, the next four find the warp's rows in the cache.
//
// A slot's numbers are sums over 32 lanes, each over every 32nd 16 bytes, ascending; the lanes' as a
// tree: the same whichever slots come with it.
//
// Requires blocks of 256 threads, (ceil(m / 16), n) and (ceil(d / 32), n) of them, n = tokens * k <=
// 128 slots. A slot whose index is >= e is left out.
//
//   x        [tokens, d]   rows x_stride apart
//   indices  [n]
//   gate_up  [e, 2 m, d]   the rows of the gate, then those of up
//   down     [e, d, m]
//   hidden   [n, m]
//   y        [n, d]        f32
#include "common/activations.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;
constexpr unsigned MAX_SLOTS = 128;
// Rows of weights of a warp, and rows that are multiplied with them at once.
constexpr unsigned WEIGHTS = 4;
constexpr unsigned MOST = 4;

// The slots whose expert is that of slot blockIdx.y, ascending, and their number; 0 for a block that
// has nothing to do. All threads must call it.
__device__ inline unsigned find_slots(const uint32_t *indices, size_t n, size_t e,
                                      uint32_t (&slots)[MAX_SLOTS]) {
    __shared__ unsigned same[WARPS];
    const unsigned i = threadIdx.x, lane = i % WARP, warp = i / WARP;
    const uint32_t expert = indices[blockIdx.y];
    const bool own = i < n && indices[i] == expert;
    const unsigned of_warp = __ballot_sync(WHOLE_WARP, own);
    if (lane == 0) {
        same[warp] = of_warp;
    }
    __syncthreads();
    unsigned before = unsigned(__popc(of_warp & ((1u << lane) - 1))), count = 0;
    bool first = true;
    for (unsigned other = 0; other < WARPS; ++other) {
        const unsigned number = unsigned(__popc(same[other]));
        before += other < warp ? number : 0;
        count += number;
        // Bits below blockIdx.y.
        const unsigned begin = other * WARP;
        const unsigned earlier = blockIdx.y >= begin + WARP ? WHOLE_WARP
                                 : blockIdx.y > begin       ? (1u << (blockIdx.y - begin)) - 1
                                                            : 0;
        first = first && (same[other] & earlier) == 0;
    }
    if (own) {
        slots[before] = i;
    }
    __syncthreads();
    return first && expert < e ? count : 0;
}

// 16 bytes of a row from number `at` on: at once where PACKED, else one by one, zeros beyond `width`.
template <bool PACKED, typename T>
__device__ inline Pack<T, PACK<T>> take(const T *row, size_t at, size_t width) {
    if constexpr (PACKED) {
        return *reinterpret_cast<const Pack<T, PACK<T>> *>(row + at);
    } else {
        Pack<T, PACK<T>> pack;
#pragma unroll
        for (int i = 0; i < PACK<T>; ++i) {
            pack.values[i] = at + i < width ? row[at + i] : narrow<T>(0.0f);
        }
        return pack;
    }
}

// Numbers of a row that the lanes of a warp read at once.
template <typename T> constexpr unsigned STEP = WARP * PACK<T>;

// sums[i][j] += rows[i] . weights[j], of this lane's numbers in the STEPS steps from `at` on, one after
// another. All weights are read before the first product, so that so many reads are under way.
template <bool PACKED, unsigned STEPS, int ROWS, typename T>
__device__ inline void multiply_steps(const T *const (&rows)[ROWS],
                                      const T *const (&weights)[WEIGHTS], size_t at, size_t width,
                                      float (&sums)[ROWS][WEIGHTS]) {
    constexpr int N = PACK<T>;
    Pack<T, N> packs[STEPS][WEIGHTS];
#pragma unroll
    for (unsigned step = 0; step < STEPS; ++step) {
#pragma unroll
        for (unsigned j = 0; j < WEIGHTS; ++j) {
            packs[step][j] = take<PACKED>(weights[j], at + step * STEP<T>, width);
        }
    }
#pragma unroll
    for (unsigned step = 0; step < STEPS; ++step) {
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const Pack<T, N> x = take<PACKED>(rows[i], at + step * STEP<T>, width);
#pragma unroll
            for (unsigned j = 0; j < WEIGHTS; ++j) {
#pragma unroll
                for (int part = 0; part < N; ++part) {
                    const float w = widen(packs[step][j].values[part]);
                    sums[i][j] = fmaf(w, widen(x.values[part]), sums[i][j]);
                }
            }
        }
    }
}

// sums[i][j] = rows[i] . weights[j], of `width` numbers, in every lane. The order of the sums is the
// same whether numbers can be read 16 bytes at once or not.
template <bool PACKED, int ROWS, typename T>
__device__ inline void multiply(const T *const (&rows)[ROWS], const T *const (&weights)[WEIGHTS],
                                size_t width, float (&sums)[ROWS][WEIGHTS]) {
    size_t at = threadIdx.x % WARP * PACK<T>;
    if constexpr (PACKED) {
        for (; at + STEP<T> < width; at += 2 * STEP<T>) {
            multiply_steps<PACKED, 2>(rows, weights, at, width, sums);
        }
    }
    for (; at < width; at += STEP<T>) {
        multiply_steps<PACKED, 1>(rows, weights, at, width, sums);
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
#pragma unroll
        for (unsigned j = 0; j < WEIGHTS; ++j) {
            sums[i][j] = over_warp<Sum>(sums[i][j]);
        }
    }
}

// The products of `count` <= ROWS slots, of which row_of(slot) is the row; store(slot, j, sums)
// takes what column j of the warp's `columns` needs, by one lane each.
template <int ROWS, typename T, typename RowOf, typename Store>
__device__ inline void multiply_slots(const uint32_t *slots, unsigned count,
                                      const T *const (&weights)[WEIGHTS], size_t width, bool packed,
                                      unsigned columns, RowOf row_of, Store store) {
    const T *rows[ROWS];
#pragma unroll
    for (unsigned i = 0; i < ROWS; ++i) {
        rows[i] = row_of(slots[i < count ? i : count - 1]);
    }
    float sums[ROWS][WEIGHTS] = {};
    if (packed) {
        multiply<true>(rows, weights, width, sums);
    } else {
        multiply<false>(rows, weights, width, sums);
    }
    // A row's sums are for lanes i * columns on.
    const unsigned lane = threadIdx.x % WARP, own = lane / columns;
    float of_own[WEIGHTS] = {};
#pragma unroll
    for (unsigned i = 0; i < ROWS; ++i) {
#pragma unroll
        for (unsigned j = 0; j < WEIGHTS; ++j) {
            of_own[j] = i == own ? sums[i][j] : of_own[j];
        }
    }
    if (own < count) {
        store(slots[own], lane % columns, of_own);
    }
}

// All slots of the block's expert, at most MOST at once.
template <typename T, typename RowOf, typename Store>
__device__ inline void multiply_all(const uint32_t *slots, unsigned count,
                                    const T *const (&weights)[WEIGHTS], size_t width, bool packed,
                                    unsigned columns, RowOf row_of, Store store) {
    for (unsigned first = 0; first < count; first += MOST) {
        const uint32_t *some = slots + first;
        const unsigned left = count - first;
        if (left == 1) {
            multiply_slots<1>(some, left, weights, width, packed, columns, row_of, store);
        } else if (left == 2) {
            multiply_slots<2>(some, left, weights, width, packed, columns, row_of, store);
        } else {
            multiply_slots<MOST>(some, left < MOST ? left : MOST, weights, width, packed, columns,
                                 row_of, store);
        }
    }
}

template <typename T>
__device__ void gate_up(const T *x, const uint32_t *indices, const T *weights, T *hidden,
                        size_t x_stride, size_t n, size_t k, size_t e, size_t d, size_t m,
                        size_t f) {
    constexpr unsigned COLUMNS = WEIGHTS / 2;
    __shared__ uint32_t slots[MAX_SLOTS];
    const unsigned count = find_slots(indices, n, e, slots);
    const size_t first = (size_t(blockIdx.x) * WARPS + threadIdx.x / WARP) * COLUMNS;
    if (count == 0 || first >= m) {
        return;
    }
    weights += indices[blockIdx.y] * (2 * m * d);
    const size_t second = first + 1 < m ? first + 1 : first;
    const T *const own[WEIGHTS] = {weights + first * d, weights + second * d,
                                   weights + (m + first) * d, weights + (m + second) * d};
    const bool packed = aligned(weights) && aligned(x) && d % PACK<T> == 0 && x_stride % PACK<T> == 0;
    const auto row_of = [&](uint32_t slot) { return x + slot / uint32_t(k) * x_stride; };
    multiply_all(slots, count, own, d, packed, COLUMNS, row_of,
                 [&](uint32_t slot, unsigned column, const float(&sums)[WEIGHTS]) {
                     if (first + column >= m) {
                         return;
                     }
                     const float gate = column == 0 ? sums[0] : sums[1];
                     const float up = column == 0 ? sums[2] : sums[3];
                     with_activation(f, [&](auto function) {
                         hidden[slot * m + first + column] = narrow<T>(function.at(gate) * up);
                     });
                 });
}

template <typename T>
__device__ void down(const T *hidden, const uint32_t *indices, const T *weights, float *y, size_t n,
                     size_t e, size_t d, size_t m) {
    __shared__ uint32_t slots[MAX_SLOTS];
    const unsigned count = find_slots(indices, n, e, slots);
    const size_t first = (size_t(blockIdx.x) * WARPS + threadIdx.x / WARP) * WEIGHTS;
    if (count == 0 || first >= d) {
        return;
    }
    weights += indices[blockIdx.y] * (d * m);
    const T *own[WEIGHTS];
#pragma unroll
    for (unsigned j = 0; j < WEIGHTS; ++j) {
        own[j] = weights + (first + j < d ? first + j : d - 1) * m;
    }
    const bool packed = aligned(weights) && aligned(hidden) && m % PACK<T> == 0;
    const auto row_of = [&](uint32_t slot) { return hidden + slot * m; };
    multiply_all(slots, count, own, m, packed, WEIGHTS, row_of,
                 [&](uint32_t slot, unsigned column, const float(&sums)[WEIGHTS]) {
                     float sum = sums[0];
#pragma unroll
                     for (unsigned j = 1; j < WEIGHTS; ++j) {
                         sum = column == j ? sums[j] : sum;
                     }
                     if (first + column < d) {
                         y[slot * d + first + column] = sum;
                     }
                 });
}

#define FEW(dtype, T)                                                                              \
    BOUNDED_KERNEL(THREADS, 2, moe_few_gate_up_##dtype)                                            \
    (const T *x, const uint32_t *indices, const T *weights, T *hidden, size_t x_stride, size_t n,  \
     size_t k, size_t e, size_t d, size_t m, size_t f) {                                           \
        gate_up(x, indices, weights, hidden, x_stride, n, k, e, d, m, f);                          \
    }                                                                                              \
    EXPORT(moe_few_gate_up_##dtype)                                                                \
    BOUNDED_KERNEL(THREADS, 2, moe_few_down_##dtype)                                               \
    (const T *hidden, const uint32_t *indices, const T *weights, float *y, size_t n, size_t e,     \
     size_t d, size_t m) {                                                                         \
        down(hidden, indices, weights, y, n, e, d, m);                                             \
    }                                                                                              \
    EXPORT(moe_few_down_##dtype)
EVERY_DTYPE(FEW)
