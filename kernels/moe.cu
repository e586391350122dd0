// A mixture of experts by sorted groups: y_t = sum_r w_tr down(f(gate x_t) up x_t), the experts of
// slot (t, r) = t * k + r, in three launches after moe_sort.cu:
//
//   gate_up  hidden = f(gate x) up x, for the sorted slots
//   down     their products with down, back in the order of slots, in f32
//   sum      the weighted sum of each token's, r ascending, rounded once
//
// The products go over tiles of ROWS sorted slots of one expert and 128 rows of its weights. A tile
// never spans two experts, so there are at most (n k + (ROWS - 1) min(e, n k)) / ROWS of slots, which
// the host knows without the counts; blocks beyond those that there are leave at once. Tiles of an
// expert follow one another in bands of 16 tiles of slots, all of whose columns come before the next
// band: blocks that run together share weights and slots in the L2 cache.
//
// Two heights: `tall` 128 slots, `flat` 32 for experts with few slots each, where half of a tall tile
// would be empty and weights bound the time. The order of a number's products is that of the axis
// that is summed, in steps of 16 or of 1: the same in both and whichever tokens come with it.
//
// Steps of 128 bytes of the summed axis go to shared memory through copies (cp.async), 3 steps of 32
// KiB at a time, or 4 of 20. bf16 and f16 use tensor cores, a warp 64 by 64 or 32 by 32 numbers; f32
// is multiplied and added as f32, 8 by 8 or 4 by 8 numbers a thread. gate_up's 128 rows are 64 of
// the gate and the same 64 of up, 16 of the one and 16 of the other by turns, so that a thread holds
// both numbers of a pair. Rows that are no whole packs of 16 bytes are copied number by number.
//
// What bounds it: tall, 16 bits: the rate of mma.sync, which on a GPU of 9.0 is some 60 % of that of
// its own wgmma. A step of 16 takes 16 KiB from shared memory and brings 8, at 128 bytes a cycle 3/4
// of the time that tensor cores of 8.0 have for it, and 19/20 on 9.0; warps of 64 by 32 would take 24
// KiB from it. flat: the bandwidth of the weights; f32: the rate of fused products. `sum`: bandwidth.
// Two tall blocks share a multiprocessor on 9.0; on 8.0 its shared memory holds one.
//
// Requires blocks of 128 threads, 256 for tall tiles of f32, as many as tiles of slots times
// ceil(m / 64) or ceil(d / 128); 98304 or 81920 bytes of dynamic shared memory; e <= 512. `sum`: blocks
// of 128 threads, tokens * ceil(d / elements of 128 * 16 bytes).
//
//   x        [tokens, d]   rows x_stride apart
//   weights  [e, 2 m, d]   of gate_up: the rows of the gate, then those of up
//            [e, d, m]     of down
//   slots    [n]           sorted, n = tokens * k
//   groups   [e + 1]       where an expert's slots begin
//   tiles    [e + 1]       how many tiles of slots there are before an expert
//   hidden   [n, m]        in the order of `slots`; not written where the index is >= e
//   y        [n, d]        f32, in the order of slots; not written where the index is >= e
//   indices, shares  [tokens, k]
//   result   [tokens, d]   NaN where an index is >= e
#include "common/activations.cuh"
#include "common/mma.cuh"
#include "common/rows.cuh"

// Packs of 16 bytes in a row of a tile.
constexpr int PACKS = 8;
// Rows of weights in a tile.
constexpr int COLUMNS = 128;
// Tiles of slots in a band.
constexpr uint32_t BAND = 16;

// Numbers of a row of a tile: the step along the axis that is summed.
template <typename T> constexpr int STEP = PACKS * PACK<T>;

template <typename T, int ROWS> struct Tiling {
    static_assert(ROWS == 128 || ROWS == 32, "tall or flat");
    static constexpr int threads = ROWS == 128 && sizeof(T) == 4 ? 256 : 128;
    static constexpr int stages = ROWS == 128 ? 3 : 4;
    // Rows that all threads copy at once, a pack each.
    static constexpr int pass = threads / PACKS;
};

// The numbers of a tile that a thread has: on tensor cores, those of 16-bit factors.
template <typename T, int ROWS> struct Sums {
    // Two pairs of warps, or four side by side.
    static constexpr int beside = ROWS == 128 ? 2 : 4;
    static constexpr int width = COLUMNS / beside;
    static constexpr int height = ROWS / (Tiling<T, ROWS>::threads / WARP / beside);
    static constexpr int down = height / 16, across = width / 8;
    Accumulator sums[down][across];

    __device__ static int first_row() { return int(threadIdx.x) / WARP / beside * height; }
    __device__ static int first_column() { return int(threadIdx.x) / WARP % beside * width; }

    __device__ void add(const T *rows, const T *columns) {
#pragma unroll
        for (int pack = 0; pack < PACKS; pack += 2) {
            FragmentA<T> a[down];
            FragmentB<T> b[across / 2][2];
#pragma unroll
            for (int i = 0; i < down; ++i) {
                load_matrix_a<PACKS>(a[i], rows, first_row() + 16 * i, pack);
            }
#pragma unroll
            for (int j = 0; j < across / 2; ++j) {
                load_matrix_b<PACKS>(b[j], columns, first_column() + 16 * j, pack);
            }
#pragma unroll
            for (int i = 0; i < down; ++i) {
#pragma unroll
                for (int j = 0; j < across; ++j) {
                    mma(sums[i][j], a[i], b[j / 2][j % 2]);
                }
            }
        }
    }

    // store(row, column, values) for each pair of neighbours in a row.
    template <typename Store> __device__ void each(Store store) const {
#pragma unroll
        for (int i = 0; i < down; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row() + 16 * i + 8 * half + accumulator_row();
#pragma unroll
                for (int j = 0; j < across; ++j) {
                    const float *own = sums[i][j].values + 2 * half;
                    const float values[2] = {own[0], own[1]};
                    store(row, first_column() + 8 * j + accumulator_column(), values);
                }
            }
        }
    }

    // store(row, column, gates, ups) where 16 columns of the gate are followed by the same of up.
    template <typename Store> __device__ void each_pair(Store store) const {
#pragma unroll
        for (int i = 0; i < down; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row() + 16 * i + 8 * half + accumulator_row();
#pragma unroll
                for (int j = 0; j < across / 2; ++j) {
                    const int of_gate = j / 2 * 4 + j % 2;
                    const float *gate = sums[i][of_gate].values + 2 * half;
                    const float *up = sums[i][of_gate + 2].values + 2 * half;
                    const float gates[2] = {gate[0], gate[1]}, ups[2] = {up[0], up[1]};
                    store(row, first_column() / 2 + 8 * j + accumulator_column(), gates, ups);
                }
            }
        }
    }
};

// In f32: every 16th column of every 16th or 8th row.
template <int ROWS> struct Sums<float, ROWS> {
    static constexpr int apart = Tiling<float, ROWS>::threads / 16;
    static constexpr int down = ROWS / apart, across = COLUMNS / 16;
    float sums[down][across];

    __device__ static int first_row() { return int(threadIdx.x) / 16; }
    __device__ static int first_column() { return int(threadIdx.x) % 16; }

    __device__ void add(const float *rows, const float *columns) {
#pragma unroll 1
        for (int pack = 0; pack < PACKS; ++pack) {
            float b[across][4];
#pragma unroll
            for (int j = 0; j < across; ++j) {
                load(columns + 4 * swizzled<PACKS>(first_column() + 16 * j, pack), b[j]);
            }
#pragma unroll
            for (int i = 0; i < down; ++i) {
                float a[4];
                load(rows + 4 * swizzled<PACKS>(first_row() + apart * i, pack), a);
#pragma unroll
                for (int part = 0; part < 4; ++part) {
#pragma unroll
                    for (int j = 0; j < across; ++j) {
                        sums[i][j] = fmaf(a[part], b[j][part], sums[i][j]);
                    }
                }
            }
        }
    }

    template <typename Store> __device__ void each(Store store) const {
#pragma unroll
        for (int i = 0; i < down; ++i) {
#pragma unroll
            for (int j = 0; j < across; ++j) {
                const float values[1] = {sums[i][j]};
                store(first_row() + apart * i, first_column() + 16 * j, values);
            }
        }
    }

    template <typename Store> __device__ void each_pair(Store store) const {
#pragma unroll
        for (int i = 0; i < down; ++i) {
#pragma unroll
            for (int j = 0; j < across; j += 2) {
                const float gates[1] = {sums[i][j]}, ups[1] = {sums[i][j + 1]};
                store(first_row() + apart * i, first_column() + 8 * j, gates, ups);
            }
        }
    }
};

// Which tile is this block's: the expert, its sorted slots first .. end, at most ROWS, and which tile
// of columns.
struct Tile {
    uint32_t expert, first, end, column;
};

// Whether there is a tile for this block. All threads must call it.
template <int ROWS>
__device__ inline bool find_tile(const uint32_t *groups, const uint32_t *tiles, size_t e,
                                 uint32_t n_columns, Tile &tile) {
    __shared__ uint32_t found;
    const uint32_t number = blockIdx.x / n_columns;
    if (number >= tiles[e]) {
        return false;
    }
    for (uint32_t expert = threadIdx.x; expert < e; expert += blockDim.x) {
        if (tiles[expert] <= number && number < tiles[expert + 1]) {
            found = expert;
        }
    }
    __syncthreads();
    tile.expert = found;
    const uint32_t before = tiles[tile.expert], n_tiles = tiles[tile.expert + 1] - before;
    const uint32_t within = blockIdx.x - before * n_columns;
    const uint32_t band = within / (BAND * n_columns), of_band = within % (BAND * n_columns);
    const uint32_t left = n_tiles - band * BAND, height = left < BAND ? left : BAND;
    tile.column = of_band / height;
    tile.first = groups[tile.expert] + (band * BAND + of_band % height) * ROWS;
    const uint32_t end = groups[tile.expert + 1];
    tile.end = end - tile.first < ROWS ? end : tile.first + ROWS;
    return true;
}

// A pack of a row from number `at` on, number by number; zeros beyond `width`.
template <typename T>
__device__ inline void fetch_numbers(T *to, const T *row, size_t at, size_t width) {
    Pack<T, PACK<T>> pack;
#pragma unroll
    for (int i = 0; i < PACK<T>; ++i) {
        pack.values[i] = at + i < width ? row[at + i] : narrow<T>(0.0f);
    }
    *reinterpret_cast<Pack<T, PACK<T>> *>(to) = pack;
}

// The sums of a tile: row_of(i) is row i of the slots, i < n_rows; weights_of(i) any row i of the
// weights, of one that is not there another one, as nobody wants its sums.
template <int ROWS, typename T, typename RowOf, typename WeightsOf>
__device__ inline void multiply_tile(Sums<T, ROWS> &sums, size_t width, bool packed, int n_rows,
                                     RowOf row_of, WeightsOf weights_of) {
    using Own = Tiling<T, ROWS>;
    constexpr int STAGE = (ROWS + COLUMNS) * STEP<T>;
    DYNAMIC_SHARED(T, shared);
    const int pack = int(threadIdx.x) % PACKS, first = int(threadIdx.x) / PACKS;
    const auto any_row_of = [&](int row) { return row_of(row < n_rows ? row : n_rows - 1); };
    const T *rows[ROWS / Own::pass], *columns[COLUMNS / Own::pass];
#pragma unroll
    for (int i = 0; i < ROWS / Own::pass; ++i) {
        rows[i] = any_row_of(first + i * Own::pass);
    }
#pragma unroll
    for (int i = 0; i < COLUMNS / Own::pass; ++i) {
        columns[i] = weights_of(first + i * Own::pass);
    }
    const int n_steps = int((width + STEP<T> - 1) / STEP<T>);
    const auto fetch_step = [&](int step, int stage) {
        // Pack `pack` of row `first`. The rows of the other passes lie multiples of 8 below it, where
        // packs are swizzled alike.
        static_assert(Own::pass % 8 == 0, "rows that are swizzled alike");
        T *to = shared + stage * STAGE + swizzled<PACKS>(first, pack) * PACK<T>;
        const size_t at = size_t(step) * STEP<T> + pack * PACK<T>;
        if (packed) {
            const bool there = at < width;
            // What is not there is not read, but its address is in the row.
            const size_t from = there ? at : 0;
#pragma unroll
            for (int i = 0; i < ROWS / Own::pass; ++i) {
                const bool row_there = there && first + i * Own::pass < n_rows;
                copy_async(to + i * Own::pass * STEP<T>, rows[i] + from, row_there);
            }
#pragma unroll
            for (int i = 0; i < COLUMNS / Own::pass; ++i) {
                copy_async(to + (ROWS + i * Own::pass) * STEP<T>, columns[i] + from, there);
            }
        } else {
            // Pointers found again: those above are in registers, which loops cannot choose among.
#pragma unroll 1
            for (int i = 0; i < ROWS; i += Own::pass) {
                fetch_numbers(to + i * STEP<T>, any_row_of(first + i), at, width);
            }
#pragma unroll 1
            for (int i = 0; i < COLUMNS; i += Own::pass) {
                fetch_numbers(to + (ROWS + i) * STEP<T>, weights_of(first + i), at, width);
            }
        }
    };
#pragma unroll
    for (int step = 0; step < Own::stages - 1; ++step) {
        if (step < n_steps) {
            fetch_step(step, step);
        }
        commit();
    }
    int stage = 0, free_stage = Own::stages - 1;
    for (int step = 0; step < n_steps; ++step) {
        // Of the groups begun, this step's is the last but stages - 2.
        wait<Own::stages - 2>();
        // All have this step; and all are done with the one before, whose place is free now.
        __syncthreads();
        if (step + Own::stages - 1 < n_steps) {
            fetch_step(step + Own::stages - 1, free_stage);
        }
        commit();
        const T *tile = shared + stage * STAGE;
        sums.add(tile, tile + ROWS * STEP<T>);
        free_stage = stage;
        stage = stage + 1 == Own::stages ? 0 : stage + 1;
    }
}

// N neighbours of a row of `width` numbers at `to`, as many as there are from `column` on; together
// where N divides `width`.
template <int N, typename T>
__device__ inline void store_neighbours(T *to, size_t column, size_t width,
                                        const float (&values)[N]) {
    if (N > 1 && column + N <= width && width % N == 0) {
        Pack<T, N> pack;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            pack.values[i] = narrow<T>(values[i]);
        }
        *reinterpret_cast<Pack<T, N> *>(to + column) = pack;
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (column + i < width) {
                to[column + i] = narrow<T>(values[i]);
            }
        }
    }
}

template <typename T, int ROWS>
__device__ void gate_up(const T *x, const T *weights, const uint32_t *slots, const uint32_t *groups,
                        const uint32_t *tiles, T *hidden, size_t x_stride, size_t k, size_t e,
                        size_t d, size_t m, size_t f) {
    Tile tile;
    if (!find_tile<ROWS>(groups, tiles, e, uint32_t((m + COLUMNS / 2 - 1) / (COLUMNS / 2)), tile)) {
        return;
    }
    const bool packed = aligned(x) && aligned(weights) && d % PACK<T> == 0 && x_stride % PACK<T> == 0;
    weights += tile.expert * (2 * m * d);
    const size_t first = size_t(tile.column) * (COLUMNS / 2);
    Sums<T, ROWS> sums = {};
    multiply_tile(
        sums, d, packed, int(tile.end - tile.first),
        [&](int row) {
            return x + slots[tile.first + uint32_t(row)] / uint32_t(k) * x_stride;
        },
        [&](int row) {
            const size_t of_gate = first + size_t(row / 32 * 16 + row % 16);
            const size_t column = of_gate < m ? of_gate : m - 1;
            return weights + (row % 32 < 16 ? column : m + column) * d;
        });
    with_activation(f, [&](auto function) {
        sums.each_pair([&](int row, int column, const auto &gates, const auto &ups) {
            constexpr int N = sizeof gates / sizeof(float);
            float values[N];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                values[i] = function.at(gates[i]) * ups[i];
            }
            const uint32_t at = tile.first + uint32_t(row);
            if (at < tile.end) {
                store_neighbours(hidden + at * m, first + size_t(column), m, values);
            }
        });
    });
}

template <typename T, int ROWS>
__device__ void down(const T *hidden, const T *weights, const uint32_t *slots,
                     const uint32_t *groups, const uint32_t *tiles, float *y, size_t e, size_t d,
                     size_t m) {
    Tile tile;
    if (!find_tile<ROWS>(groups, tiles, e, uint32_t((d + COLUMNS - 1) / COLUMNS), tile)) {
        return;
    }
    const bool packed = aligned(hidden) && aligned(weights) && m % PACK<T> == 0;
    weights += tile.expert * (d * m);
    const size_t first = size_t(tile.column) * COLUMNS;
    Sums<T, ROWS> sums = {};
    multiply_tile(
        sums, m, packed, int(tile.end - tile.first),
        [&](int row) { return hidden + (tile.first + uint32_t(row)) * m; },
        [&](int row) {
            const size_t column = first + size_t(row);
            return weights + (column < d ? column : d - 1) * m;
        });
    sums.each([&](int row, int column, const auto &values) {
        const uint32_t at = tile.first + uint32_t(row);
        if (at < tile.end) {
            store_neighbours(y + slots[at] * d, first + size_t(column), d, values);
        }
    });
}

constexpr unsigned SUM_THREADS = 128;

template <typename T>
__device__ void sum(const float *y, const uint32_t *indices, const float *shares, T *result,
                    size_t k, size_t e, size_t d) {
    constexpr int N = PACK<T>;
    constexpr size_t piece = SUM_THREADS * N;
    const size_t pieces = (d + piece - 1) / piece;
    const size_t token = blockIdx.x / pieces, first = blockIdx.x % pieces * piece;
    y += token * k * d + first;
    result += token * d + first;
    indices += token * k;
    shares += token * k;
    const bool packed = aligned(y) && aligned(result) && d % PACK<float> == 0;
    share<N>(d - first < piece ? d - first : piece, packed, [&](auto width, size_t at) {
        float sums[width.n] = {};
        for (size_t r = 0; r < k; ++r) {
            float values[width.n];
            const bool there = indices[r] < e;
            if (there) {
                load(y + r * d + at, values);
            }
            for (int i = 0; i < width.n; ++i) {
                const float value = there ? values[i] : __uint_as_float(0x7fffffffu);
                sums[i] = fmaf(shares[r], value, sums[i]);
            }
        }
        store(sums, result + at);
    });
}

// Blocks on a multiprocessor at once: with two, the registers of tall f32 tiles would not suffice.
template <typename T, int ROWS> constexpr int BLOCKS = sizeof(T) == 4 && ROWS == 128 ? 1 : 2;

#define PRODUCTS(shape, ROWS, dtype, T)                                                            \
    BOUNDED_KERNEL((Tiling<T, ROWS>::threads), (BLOCKS<T, ROWS>), moe_gate_up_##shape##_##dtype)   \
    (const T *x, const T *weights, const uint32_t *slots, const uint32_t *groups,                  \
     const uint32_t *tiles, T *hidden, size_t x_stride, size_t k, size_t e, size_t d, size_t m,    \
     size_t f) {                                                                                   \
        gate_up<T, ROWS>(x, weights, slots, groups, tiles, hidden, x_stride, k, e, d, m, f);       \
    }                                                                                              \
    EXPORT(moe_gate_up_##shape##_##dtype)                                                          \
    BOUNDED_KERNEL((Tiling<T, ROWS>::threads), (BLOCKS<T, ROWS>), moe_down_##shape##_##dtype)      \
    (const T *hidden, const T *weights, const uint32_t *slots, const uint32_t *groups,             \
     const uint32_t *tiles, float *y, size_t e, size_t d, size_t m) {                              \
        down<T, ROWS>(hidden, weights, slots, groups, tiles, y, e, d, m);                          \
    }                                                                                              \
    EXPORT(moe_down_##shape##_##dtype)
#define MOE(dtype, T)                                                                              \
    PRODUCTS(tall, 128, dtype, T)                                                                  \
    PRODUCTS(flat, 32, dtype, T)                                                                   \
    KERNEL(moe_sum_##dtype)                                                                        \
    (const float *y, const uint32_t *indices, const float *shares, T *result, size_t k, size_t e,  \
     size_t d) {                                                                                   \
        sum(y, indices, shares, result, k, e, d);                                                  \
    }                                                                                              \
    EXPORT(moe_sum_##dtype)
EVERY_DTYPE(MOE)
