// The statistics of a pattern's rows and columns, from queries, keys and the log-sum-exp of the
// forward pass, beside which they are taken: a = exp(s - lse), s the score of a query and a key.
// Whatever else the softmax is over, a sink logit, is in the log-sum-exp and needs nothing here.
//
// Every product is formed once. A block owns tiles of queries of one head and walks over the keys
// that they see: sums over a row's keys stay in registers. Sums over a column's queries leave a
// tile of queries and keys as one row of numbers, which the block adds up in memory of its own: a
// head's tiles of queries are dealt to `parts` blocks, a fixed number, so that this memory is O(t)
// for a head. Where queries are few, as with a cache, the keys are dealt to `splits` blocks. A
// second launch adds up parts and splits, in ascending order. (The other way, one sweep for the
// rows and one for the columns, forms twice the products and exponentials, which are what takes
// the time; keys that walk over queries would leave five numbers a row and tile behind, not one.)
//
// Two ways to the products: tensor cores for 16-bit numbers up to 256 wide, whose keys are copied
// while the tile before is worked on; plain cores (common/products.cuh) for all else. What a warp
// makes of its tile is the same text. A tile that is seen whole, within or without the window and
// the boundary, needs no comparisons: with x = s - lse a score costs one multiply-add for x, an
// exponential and a multiplication, multiply-adds for entropy and distance, two additions and two
// maxima. Entropy is -sum a x, which does not cancel; distances within a chunk of 32 or 64 keys are
// from its last key on, for the same reason. Sums of a chunk are in f32, sums over chunks compensated.
//
// A NaN in a query is in all statistics of its row that it has a part in, and in the columns that
// the row sees.
//
//   q, lengths, offsets, lse, k   as in attention_pattern.cu
//   boundaries  [b]                     u32, keys before which are the context; 0: none
//   sums        [splits, b, h, t, 5]    f32, of rows within their lengths
//   points      [b, h, t, 2]            f32, x of the first key, if it is seen, and of the own one
//   columns     [b, h, parts, t]        f32, over the keys from each row's first query on
//   out         [b, h, t, 9]            f32, in the order of hooks' Statistic; 0 beyond the length
#include "common/mma.cuh"
#include "common/products.cuh"

enum Of : int { ENTROPY, LARGEST, DISTANCE, NEAR, BEFORE, OF_ROW };
enum Point : int { FIRST, OWN, POINTS };

constexpr int KEYS = TILE; // of a tile
constexpr float LOWEST = -3.402823466e38f;
constexpr float LOG2_E = 1.44269504f;

template <typename T> struct Case {
    const T *q, *k;
    const uint32_t *lengths, *offsets;
    const float *lse;
    const uint32_t *boundaries;
    float *sums, *points, *columns;
    Heads q_at, k_at;
    Scores scores;
    size_t b, t, s, h, h_kv, d;
    size_t near; // keys that count as the window of the statistic
    size_t parts, splits;
};

// A sum that keeps what its additions round away.
struct Compensated {
    float sum, lost;

    __device__ void add(float x) {
        const float corrected = x - lost;
        const float next = sum + corrected;
        lost = (next - sum) - corrected;
        sum = next;
    }
    __device__ double value() const { return double(sum) - double(lost); }
};

// What a thread knows of one query: sums over its keys of the tiles so far.
struct Row {
    float lse;
    float largest; // of x
    Compensated entropy, distance, near, before;
};

// The exponential, in two units of the last place for arguments around 0; 0 where it is subnormal.
__device__ inline float exponential(float x) {
#ifdef DEVICE_INSTRUCTIONS
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * LOG2_E));
    return result;
#else
    return exp2f(x * LOG2_E);
#endif
}

// Products of 64 queries and 64 keys on plain cores; a warp has 8 of the queries.
template <typename T> struct PlainTiles {
    static constexpr int THREADS = TILE_THREADS, WARPS = THREADS / WARP;
    static constexpr int QUERIES = TILE, WARP_QUERIES = QUERIES / WARPS;
    static constexpr int CHUNK = KEYS; // keys of a product
    static constexpr int ROWS = PER_THREAD, COLUMNS = PER_THREAD;
    static constexpr int LANES = 16;        // that share a query
    static constexpr bool BY_WARPS = false; // whether a warp can leave a product out

    Vectors<T> q, k, next;
    int n_queries, n_keys, n_next;
    size_t d;

    __device__ static int query(int i) { return tile_query(i); }
    // From the thread's first key.
    __device__ static constexpr int step(int j) { return 16 * j; }
    __device__ static int own_key() { return tile_key(0); }

    __device__ void open(Vectors<T> queries, int count) {
        q = queries;
        n_queries = count;
    }
    __device__ void fetch(Vectors<T> keys, int count, int) {
        next = keys;
        n_next = count;
    }
    __device__ void arrive() {
        k = next;
        n_keys = n_next;
        __syncthreads();
    }
    __device__ void products(int, int, float (&to)[ROWS][COLUMNS]) {
        tile_products(q, n_queries, k, n_keys, d, to);
    }

    // Sums over the warp's queries, from those over the thread's.
    __device__ static void over_queries(float (&columns)[COLUMNS], float *to) {
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            columns[j] += __shfl_xor_sync(WHOLE_WARP, columns[j], 16);
        }
        if (threadIdx.x % WARP < 16) {
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                to[tile_key(j)] = columns[j];
            }
        }
    }
};

// Products of 64 M queries and 64 keys on tensor cores, for vectors up to 16 STEPS wide; a warp has
// 16 M of the queries, in registers, and forms products with 32 keys at a time.
template <typename T, int STEPS, int M> struct TensorTiles {
    static constexpr int THREADS = 128, WARPS = THREADS / WARP;
    static constexpr int WARP_QUERIES = 16 * M, QUERIES = WARP_QUERIES * WARPS;
    static constexpr int CHUNK = 32;
    static constexpr int ROWS = 2 * M, COLUMNS = CHUNK / 4;
    static constexpr int LANES = 4;
    static constexpr bool BY_WARPS = true;
    // Of a key in shared memory.
    static constexpr int PACKS = STEPS <= 4 ? 8 : STEPS <= 8 ? 16 : 32;

    T *keys; // [2, KEYS, PACKS] packs
    size_t d;
    FragmentA<T> q[M][STEPS];

    __device__ static int query(int i) {
        return int(threadIdx.x) / WARP * WARP_QUERIES + i / 2 * 16 + i % 2 * 8 + accumulator_row();
    }
    __device__ static constexpr int step(int j) { return j / 2 * 8 + j % 2; }
    __device__ static int own_key() { return accumulator_column(); }

    __device__ void open(Vectors<T> queries, int count) {
        const T zero = narrow<T>(0.0f);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int at = 0; at < STEPS; ++at) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int row = query(2 * m + i % 2);
                    const size_t column = at * 16 + i / 2 * 8 + accumulator_column();
                    const T *const from = queries.first + row * queries.step + column;
                    const T pair[2] = {row < count && column < d ? from[0] : zero,
                                       row < count && column + 1 < d ? from[1] : zero};
                    memcpy(&q[m][at].registers[i], pair, sizeof pair);
                }
            }
        }
    }

    __device__ void fetch(Vectors<T> from, int count, int stage) {
        T *const to = keys + stage * (KEYS * PACKS * PACK<T>);
        if (aligned(from.first) && from.step % PACK<T> == 0 && d % PACK<T> == 0) {
            constexpr int ROWS_AT_ONCE = THREADS / PACKS;
            const int first = int(threadIdx.x) / PACKS, pack = int(threadIdx.x) % PACKS;
            const T *const at = from.first + first * from.step + pack * PACK<T>;
#pragma unroll
            for (int rows = 0; rows < KEYS; rows += ROWS_AT_ONCE) {
                // Every 8 rows packs lie as before: the offsets between are known to the compiler.
                T *const place = to + swizzled<PACKS>(rows % 8 + first, pack) * PACK<T>;
                const bool there = rows + first < count && size_t(pack * PACK<T>) < d;
                copy_async(place + rows / 8 * 8 * (PACKS * PACK<T>), at + rows * from.step, there);
            }
        } else {
            for (int place = int(threadIdx.x); place < KEYS * PACKS * PACK<T>; place += THREADS) {
                const int row = place / (PACKS * PACK<T>), column = place % (PACKS * PACK<T>);
                const bool there = row < count && size_t(column) < d;
                to[swizzled<PACKS>(row, column / PACK<T>) * PACK<T> + column % PACK<T>] =
                    there ? from.first[row * from.step + column] : narrow<T>(0.0f);
            }
        }
        commit();
    }
    __device__ void arrive() {
        wait<0>();
        __syncthreads();
    }

    __device__ void products(int stage, int chunk, float (&to)[ROWS][COLUMNS]) {
        const T *const tile = keys + stage * (KEYS * PACKS * PACK<T>);
        Accumulator sums[M][CHUNK / 8];
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < CHUNK / 8; ++n) {
                sums[m][n] = {};
            }
        }
#pragma unroll
        for (int at = 0; at < STEPS; ++at) {
#pragma unroll
            for (int n = 0; n < CHUNK / 8; n += 2) {
                FragmentB<T> k[2];
                load_matrix_b<PACKS>(k, tile, chunk * CHUNK + n * 8, at * 2);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(sums[m][n], q[m][at], k[0]);
                    mma(sums[m][n + 1], q[m][at], k[1]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < COLUMNS; ++j) {
                to[i][j] = sums[i / 2][j / 2].values[i % 2 * 2 + j % 2];
            }
        }
    }

    // Adds half of a lane's columns to those of another lane, and lets go of the other half.
    template <int HALF> __device__ static void halve(float (&columns)[COLUMNS]) {
        const bool upper = (threadIdx.x & (HALF * 4)) != 0;
#pragma unroll
        for (int j = 0; j < HALF; ++j) {
            const float own = upper ? columns[j + HALF] : columns[j];
            const float other = upper ? columns[j] : columns[j + HALF];
            columns[j] = own + __shfl_xor_sync(WHOLE_WARP, other, HALF * 4);
        }
    }
    // Lane l ends with the one column l / 8 * 8 + l % 4 * 2 + l / 4 % 2.
    __device__ static void over_queries(float (&columns)[COLUMNS], float *to) {
        static_assert(COLUMNS == 8, "halved three times");
        halve<4>(columns);
        halve<2>(columns);
        halve<1>(columns);
        const int lane = int(threadIdx.x % WARP);
        to[lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2] = columns[0];
    }
};

// A warp's queries and a chunk of a tile's keys: positions from the chunk's first key on.
struct Where {
    int lowest, highest; // of the warp's queries
    int first;           // of the block's queries
    int n_queries;       // of the block
    int window, near;    // keys that a query sees, and that are near
    int before;          // keys from the chunk's first one to the boundary; 0 where there are none
    bool from_start;     // whether the chunk's first key is the first of all
};

// How much of a chunk something applies to.
enum class Share { none, some, all };

// What a chunk of which everything is seen adds to rows and columns.
template <typename Tiles>
__device__ inline void add_whole(const float (&products)[Tiles::ROWS][Tiles::COLUMNS], float factor,
                                 const Where &at, bool near, bool before, Row (&rows)[Tiles::ROWS],
                                 float (&columns)[Tiles::COLUMNS]) {
    constexpr int last = Tiles::step(Tiles::COLUMNS - 1);
#pragma unroll
    for (int i = 0; i < Tiles::ROWS; ++i) {
        Row &row = rows[i];
        const int back = at.first + Tiles::query(i) - Tiles::own_key() - last;
        float sum = 0.0f, entropy = 0.0f, distance = 0.0f;
#pragma unroll
        for (int j = 0; j < Tiles::COLUMNS; ++j) {
            const float x = fmaf(products[i][j], factor, -row.lse);
            const float a = exponential(x);
            row.largest = fmaxf(row.largest, x);
            sum += a;
            entropy = fmaf(a, fmaxf(x, LOWEST), entropy);
            distance = fmaf(a, float(last - Tiles::step(j)), distance);
            columns[j] += a;
        }
        row.entropy.add(entropy);
        row.distance.add(fmaf(sum, float(back), distance));
        if (near) {
            row.near.add(sum);
        }
        if (before) {
            row.before.add(sum);
        }
    }
}

// The same for any chunk; `points` are those of the block's first query.
template <typename Tiles>
__device__ inline void add_any(const float (&products)[Tiles::ROWS][Tiles::COLUMNS], float factor,
                               const Where &at, Row (&rows)[Tiles::ROWS],
                               float (&columns)[Tiles::COLUMNS], float *points) {
#pragma unroll
    for (int i = 0; i < Tiles::ROWS; ++i) {
        Row &row = rows[i];
        const int query = Tiles::query(i), own = at.first + query - Tiles::own_key();
        // A row that is not there sees nothing.
        const int window = query < at.n_queries ? at.window : 0;
        const int n_before = at.before - Tiles::own_key();
        bool found = false;
        float of_own = 0.0f, entropy = 0.0f, distance = 0.0f, near = 0.0f, before = 0.0f;
#pragma unroll
        for (int j = 0; j < Tiles::COLUMNS; ++j) {
            const int back = own - Tiles::step(j);
            const bool seen = unsigned(back) < unsigned(window);
            const float x = seen ? fmaf(products[i][j], factor, -row.lse) : LOWEST;
            const float a = seen ? exponential(x) : 0.0f;
            row.largest = fmaxf(row.largest, x);
            entropy = fmaf(a, fmaxf(x, LOWEST), entropy);
            distance = fmaf(a, float(back), distance);
            near += back < at.near ? a : 0.0f;
            before += Tiles::step(j) < n_before ? a : 0.0f;
            columns[j] += a;
            found = found || (seen && back == 0);
            of_own = back == 0 ? x : of_own;
            if (j == 0 && seen && at.from_start && Tiles::own_key() == 0) {
                points[query * POINTS + FIRST] = x;
            }
        }
        row.entropy.add(entropy);
        row.distance.add(distance);
        row.near.add(near);
        row.before.add(before);
        if (found) {
            points[query * POINTS + OWN] = of_own;
        }
    }
}

// A warp's part of a chunk: products to what they add to rows and columns.
template <typename Tiles>
__device__ inline void add_chunk(float (&products)[Tiles::ROWS][Tiles::COLUMNS],
                                 const Scores &scores, const Where &at, Row (&rows)[Tiles::ROWS],
                                 float (&columns)[Tiles::COLUMNS], float *points) {
    float factor = scores.factor;
    if (scores.soft_cap != 0.0f) {
#pragma unroll
        for (int i = 0; i < Tiles::ROWS; ++i) {
#pragma unroll
            for (int j = 0; j < Tiles::COLUMNS; ++j) {
                products[i][j] = score(scores, products[i][j]);
            }
        }
        factor = 1.0f;
    }
    constexpr int keys = Tiles::CHUNK;
    const bool seen = at.lowest >= keys - 1 && at.highest < at.window &&
                      at.lowest + Tiles::WARP_QUERIES - 1 == at.highest;
    const Share near = at.highest < at.near               ? Share::all
                       : at.lowest - (keys - 1) < at.near ? Share::some
                                                          : Share::none;
    const Share before = at.before >= keys ? Share::all
                         : at.before > 0   ? Share::some
                                           : Share::none;
    if (seen && near != Share::some && before != Share::some && !at.from_start) {
        add_whole<Tiles>(products, factor, at, near == Share::all, before == Share::all, rows,
                         columns);
    } else {
        add_any<Tiles>(products, factor, at, rows, columns, points);
    }
}

// The sum over the lanes that share a query, the same in all of them.
template <int LANES> __device__ inline double over_lanes(double x) {
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
        x += __shfl_xor_sync(WHOLE_WARP, x, step);
    }
    return x;
}

__device__ inline int clamped(size_t x) { return int(smaller(x, 0x7fffffff)); }

template <typename T, typename Tiles>
__device__ inline void summarise(const Case<T> &of, Tiles &tiles) {
    __shared__ float of_warps[2][Tiles::WARPS][KEYS];
    const int thread = int(threadIdx.x), warp = thread / WARP;
    size_t index = blockIdx.x;
    const size_t part = index % of.parts;
    index /= of.parts;
    const size_t split = index % of.splits;
    index /= of.splits;
    const size_t head = index % of.h, row = index / of.h;
    const Extent valid = extent(of.lengths, of.offsets, row, of.t, of.s);
    // Positions, of which there are at most 2^30.
    const int length = int(valid.length), offset = int(valid.offset), n_keys = offset + length;
    const size_t of_split = ((of.s + KEYS - 1) / KEYS + of.splits - 1) / of.splits * KEYS;
    const int begin_keys = int(smaller(split * of_split, size_t(n_keys)));
    const int end_keys = int(smaller((split + 1) * of_split, size_t(n_keys)));
    const size_t line = (row * of.h + head) * of.t;
    const T *const keys = of.k + start_of(of.k_at, row, 0, head / (of.h / of.h_kv));
    float *const columns = of.columns + ((row * of.h + head) * of.parts + part) * of.t;
    const int window = of.scores.window == 0 ? 0x7fffffff : clamped(of.scores.window);
    const auto first_seen = [window](int position) { return position < window ? 0 : position + 1 - window; };
    const int near = clamped(of.near), boundary = clamped(of.boundaries[row]);
    tiles.d = of.d;

    // A column is always the same thread's.
    if (thread < KEYS) {
        for (int key = begin_keys + thread; key < end_keys; key += KEYS) {
            if (key >= offset) {
                columns[key - offset] = 0.0f;
            }
        }
    }
    const auto add_columns = [&](int first, int stage) {
        const int key = first + thread;
        if (thread < KEYS && key >= offset && key < n_keys) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < Tiles::WARPS; ++i) {
                sum += of_warps[stage][i][thread];
            }
            // Memory adds, in the order of this thread, which does not wait for what was there.
            atomicAdd(&columns[key - offset], sum);
        }
    };

    // Later tiles see more keys: every other round deals them in reverse.
    const int parts = int(of.parts);
    for (int round = 0; round * parts * Tiles::QUERIES < length; ++round) {
        const int tile = round * parts + (round % 2 == 0 ? int(part) : parts - 1 - int(part));
        const int begin = tile * Tiles::QUERIES, end = min(begin + Tiles::QUERIES, length);
        if (begin >= end) {
            continue;
        }
        const int n_queries = end - begin;
        tiles.open({of.q + start_of(of.q_at, row, begin, head), size_t(of.q_at.pos)}, n_queries);
        Row rows[Tiles::ROWS];
#pragma unroll
        for (int i = 0; i < Tiles::ROWS; ++i) {
            const int query = Tiles::query(i);
            rows[i] = {query < n_queries ? of.lse[line + begin + query] : 0.0f, LOWEST, {}, {}, {}, {}};
        }
        // The warp's queries.
        const int own_begin = begin + warp * Tiles::WARP_QUERIES;
        const int own_end = min(own_begin + Tiles::WARP_QUERIES, end);

        const int from = max(first_seen(offset + begin) / KEYS * KEYS, begin_keys);
        const int to = min(end_keys, offset + end);
        const auto fetch = [&](int key, int stage) {
            tiles.fetch({keys + key * size_t(of.k_at.pos), size_t(of.k_at.pos)}, min(KEYS, to - key), stage);
        };
        int stage = 0;
        if (from < to) {
            fetch(from, stage);
        }
        for (int key = from; key < to; key += KEYS) {
            tiles.arrive();
            if (key + KEYS < to) {
                fetch(key + KEYS, 1 - stage);
            }
            if (key > from) {
                add_columns(key - KEYS, 1 - stage);
            }
#pragma unroll 1
            for (int chunk = 0; chunk < KEYS / Tiles::CHUNK; ++chunk) {
                const int start = key + chunk * Tiles::CHUNK;
                const bool seen = own_begin < own_end && start < offset + own_end &&
                                  start + Tiles::CHUNK > first_seen(offset + own_begin);
                float products[Tiles::ROWS][Tiles::COLUMNS], of_thread[Tiles::COLUMNS] = {};
                if (seen || !Tiles::BY_WARPS) {
                    tiles.products(stage, chunk, products);
                }
                if (seen) {
                    const int ahead = offset - start;
                    const Where at{ahead + own_begin, ahead + own_end - 1, ahead + begin, n_queries,
                                   window, near, max(boundary - start, 0), start == 0};
                    add_chunk<Tiles>(products, of.scores, at, rows, of_thread,
                                     of.points + (line + begin) * POINTS);
                }
                Tiles::over_queries(of_thread, of_warps[stage][warp] + chunk * Tiles::CHUNK);
            }
            stage = 1 - stage;
        }
        // Also before the next queries' first keys come.
        __syncthreads();
        if (from < to) {
            add_columns(from + (to - 1 - from) / KEYS * KEYS, 1 - stage);
        }

        float *const sums = of.sums + ((split * of.b + row) * of.h + head) * of.t * OF_ROW;
#pragma unroll
        for (int i = 0; i < Tiles::ROWS; ++i) {
            const Row &own = rows[i];
            float largest = own.largest;
#pragma unroll
            for (int step = 1; step < Tiles::LANES; step *= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(WHOLE_WARP, largest, step));
            }
            const double entropy = over_lanes<Tiles::LANES>(own.entropy.value());
            const double distance = over_lanes<Tiles::LANES>(own.distance.value());
            const double near = over_lanes<Tiles::LANES>(own.near.value());
            const double before = over_lanes<Tiles::LANES>(own.before.value());
            const int query = Tiles::query(i);
            if (thread % Tiles::LANES == 0 && query < n_queries) {
                float *const out = sums + (begin + query) * OF_ROW;
                out[ENTROPY] = float(entropy);
                out[LARGEST] = largest;
                out[DISTANCE] = float(distance);
                out[NEAR] = float(near);
                out[BEFORE] = float(before);
            }
        }
    }
}

// Requires 256 threads, b h splits parts blocks, parts fastest.
#define PLAIN(dtype, T)                                                                            \
    KERNEL(__launch_bounds__(TILE_THREADS) attention_summary_plain_##dtype)                        \
    (const T *q, const T *k, const uint32_t *lengths, const uint32_t *offsets, const float *lse,   \
     const uint32_t *boundaries, float *sums, float *points, float *columns, Heads q_at,           \
     Heads k_at, Scores scores, size_t b, size_t t, size_t s, size_t h, size_t h_kv, size_t d,     \
     size_t near, size_t parts, size_t splits) {                                                   \
        const Case<T> of{q,    k,    lengths, offsets, lse, boundaries, sums, points, columns,     \
                         q_at, k_at, scores,  b,       t,   s,          h,    h_kv,   d,           \
                         near, parts, splits};                                                     \
        PlainTiles<T> tiles;                                                                       \
        summarise(of, tiles);                                                                      \
    }                                                                                              \
    EXPORT(attention_summary_plain_##dtype)
EVERY_DTYPE(PLAIN)

// Requires 128 threads, blocks as above, 2 x 64 x 16 bytes of shared memory for each 8 numbers of
// a key, rounded up to 64, 128 or 256.
#define TENSOR(dtype, T, width, STEPS, M)                                                          \
    KERNEL(__launch_bounds__(128, 2) attention_summary_##width##_##dtype)                          \
    (const T *q, const T *k, const uint32_t *lengths, const uint32_t *offsets, const float *lse,   \
     const uint32_t *boundaries, float *sums, float *points, float *columns, Heads q_at,           \
     Heads k_at, Scores scores, size_t b, size_t t, size_t s, size_t h, size_t h_kv, size_t d,     \
     size_t near, size_t parts, size_t splits) {                                                   \
        const Case<T> of{q,    k,    lengths, offsets, lse, boundaries, sums, points, columns,     \
                         q_at, k_at, scores,  b,       t,   s,          h,    h_kv,   d,           \
                         near, parts, splits};                                                     \
        DYNAMIC_SHARED(T, keys);                                                                   \
        TensorTiles<T, STEPS, M> tiles;                                                            \
        tiles.keys = keys;                                                                         \
        summarise(of, tiles);                                                                      \
    }                                                                                              \
    EXPORT(attention_summary_##width##_##dtype)
#define EVERY_WIDTH(dtype, T)                                                                      \
    TENSOR(dtype, T, 64, 4, 2)                                                                     \
    TENSOR(dtype, T, 96, 6, 2)                                                                     \
    TENSOR(dtype, T, 128, 8, 2)                                                                    \
    TENSOR(dtype, T, 256, 16, 1)
EVERY_WIDTH(bf16, bf16)
EVERY_WIDTH(f16, f16)

// From sums to statistics, a thread to a row. Requires ceil(b h t / blockDim.x) blocks.
KERNEL(attention_summary_join_f32)
(const float *sums, const float *points, const float *columns, const uint32_t *lengths,
 const uint32_t *offsets, float *out, Scores scores, size_t b, size_t t, size_t s, size_t h,
 size_t parts, size_t splits) {
    const size_t index = size_t(blockIdx.x) * blockDim.x + threadIdx.x, n = b * h * t;
    if (index >= n) {
        return;
    }
    enum : int { SEEN_ENTROPY, MAX, FIRST_TOKEN, MEAN_DISTANCE, WINDOW, LOOKBACK, DIAGONAL, LOG_DIAGONAL, COLUMN, STATISTICS };
    out += index * STATISTICS;
    const size_t query = index % t;
    const Extent valid = extent(lengths, offsets, index / t / h, t, s);
    if (query >= valid.length) {
        for (int i = 0; i < STATISTICS; ++i) {
            out[i] = 0.0f;
        }
        return;
    }
    double of_row[OF_ROW] = {};
    float largest = LOWEST;
    for (size_t split = 0; split < splits; ++split) {
        const float *const own = sums + (split * n + index) * OF_ROW;
        for (int i = 0; i < OF_ROW; ++i) {
            of_row[i] += double(own[i]);
        }
        largest = fmaxf(largest, own[LARGEST]);
    }
    double column = 0.0;
    for (size_t part = 0; part < parts; ++part) {
        column += double(columns[(index / t * parts + part) * t + query]);
    }
    const bool first_seen = first_key(scores, valid.offset + query) == 0;
    const float own = points[index * POINTS + OWN], entropy = -float(of_row[ENTROPY]);
    out[SEEN_ENTROPY] = entropy;
    // A maximum leaves a NaN out, a sum does not.
    out[MAX] = entropy == entropy ? expf(largest) : entropy;
    out[FIRST_TOKEN] = first_seen ? expf(points[index * POINTS + FIRST]) : 0.0f;
    out[MEAN_DISTANCE] = float(of_row[DISTANCE]);
    out[WINDOW] = float(of_row[NEAR]);
    out[LOOKBACK] = float(of_row[BEFORE]);
    out[DIAGONAL] = expf(own);
    out[LOG_DIAGONAL] = own;
    out[COLUMN] = float(column);
}
EXPORT(attention_summary_join_f32)
