// Causal attention, z_u = sum_j a_uj v_j, a_uj = exp(s_uj - lse_u), over the keys j that query u
// sees (common/attention.cuh), and lse_u = ln(sum_j exp(s_uj)), in nats. A sink is one more score
// of each query of a head, with no value: it joins lse_u, and so takes its share of the weights.
//
// A group is the query heads that share a key-value head, its rows the queries of all of them,
// [pos, head]: so a block reads keys and values once for every head of the group. It takes a tile
// of rows and goes through the keys that some of them sees, a tile at a time: products with the
// queries, exponentials in base 2 relative to each row's maximum so far (the online softmax), sums
// of values; one division at the end. Tiles of keys and of values follow one another through a ring
// of slots in shared memory, copied while earlier ones are worked on. The tiles of rows that see the
// most keys come first in the grid.
//
//   attention_<D>         one block a tile of rows
//   attention_decode_<D>  small tiles of rows, and the keys of each divided among `n_splits` blocks,
//                         whose sums attention_combine joins in order of the keys
//
// bf16 and f16 on tensor cores, a warp 16 or 32 rows, the weights rounded to storage for the product
// with values; f32 in f32, a thread 4 rows.
//
// `lengths` and `offsets` are in device memory, so that one launch serves whatever they hold: a
// length beyond t or s counts as the smaller of those, then an offset beyond s - length as that.
// Results of rows beyond their length are 0. Tiles of keys begin at fixed positions, so a query's
// bits depend neither on its place in a tile nor on the rest of the batch; in parts they depend on
// n_splits.
//
// Requires d, d_value <= D; blocks and shared memory of Tensor and Plain below; the grid along x:
// tiles of rows * n_splits * batch * kv_head, of combine batch * t * h blocks of 128 threads;
// n_splits <= 256.
//
//   q        [batch, t, h, d]              any strides but the last
//   k        [batch, s, h / group, d]      any strides but the last
//   v        [batch, s, h / group, d_value] any strides but the last
//   lengths  [batch]                       valid queries of each row of the batch
//   offsets  [batch]                       keys before each row's first query
//   sinks    [h] or null
//   z        [batch, t, h, d_value]        contiguous
//   lse      [batch, h, t]                 contiguous
//   sums     [batch, kv_head, t, head of the group, n_splits, D]  sums of values
//   bases    [batch, kv_head, t, head of the group, n_splits, 2]  what the exponentials refer to,
//                                          in base 2, and their sum
#include "common/attention.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"

constexpr float LOG2_E = 1.44269504f, LN_2 = 0.693147181f;
constexpr float NOTHING = Max::neutral;
constexpr int MAX_SPLITS = 256;

// 2^x, of numbers up to 0; below 2^-126 it is 0.
__device__ inline float power_of_2(float x) {
#ifdef DEVICE_INSTRUCTIONS
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

template <typename T> struct Task {
    const T *q, *k, *v;
    const uint32_t *lengths, *offsets;
    const float *sinks;
    Heads q_at, k_at, v_at;
    Scores scores;
    uint32_t t, s, h, group, d, d_value;
};

// Where results go: z and lse, or sums and bases.
template <typename T> struct Whole {
    static constexpr bool split = false;
    static constexpr uint32_t n_splits = 1;
    T *z;
    float *lse;
};

struct Part {
    static constexpr bool split = true;
    float *sums, *bases;
    uint32_t n_splits;
};

// What a block does: rows of a group, and the keys that it goes through for them.
struct Work {
    uint32_t batch, kv_head, split;
    uint32_t first_row, n_rows; // of the group; those that are valid
    uint32_t offset;            // position of the first query of the batch's row
    uint32_t first_key, end;    // what some row sees
    uint32_t first_tile, end_tile;
};

// Valid queries of a row of the batch.
__device__ inline uint32_t length_of(const uint32_t *lengths, uint32_t batch, uint32_t t, uint32_t s) {
    return min(lengths[batch], min(t, s));
}

template <int ROWS, int KEYS, typename T>
__device__ inline Work work_of(const Task<T> &task, uint32_t n_splits) {
    const uint32_t n_tiles = (task.t * task.group + ROWS - 1) / ROWS;
    const uint32_t n_groups = gridDim.x / (n_tiles * n_splits), n_kv_heads = task.h / task.group;
    Work work;
    const uint32_t group = blockIdx.x % n_groups, rest = blockIdx.x / n_groups;
    work.batch = group / n_kv_heads;
    work.kv_head = group % n_kv_heads;
    work.split = rest % n_splits;
    work.first_row = (n_tiles - 1 - rest / n_splits) * ROWS;
    const uint32_t length = length_of(task.lengths, work.batch, task.t, task.s);
    work.offset = min(task.offsets[work.batch], task.s - length);
    const uint32_t n_valid = length * task.group;
    work.n_rows = n_valid > work.first_row ? min(n_valid - work.first_row, uint32_t(ROWS)) : 0;
    work.first_key = work.end = work.first_tile = work.end_tile = 0;
    if (work.n_rows > 0) {
        const uint32_t last_row = work.first_row + work.n_rows - 1;
        work.first_key = uint32_t(first_key(task.scores, work.offset + work.first_row / task.group));
        work.end = work.offset + last_row / task.group + 1;
        const uint32_t first = work.first_key / KEYS, end = (work.end + KEYS - 1) / KEYS;
        const uint32_t share = (end - first + n_splits - 1) / n_splits;
        work.first_tile = min(first + work.split * share, end);
        work.end_tile = min(work.first_tile + share, end);
    }
    return work;
}

// The position of a row of a block; of the last valid one for those beyond it.
template <typename T>
__device__ inline uint32_t position(const Task<T> &task, const Work &work, uint32_t row) {
    return work.offset + (work.first_row + min(row, work.n_rows - 1)) / task.group;
}

// The query and the head of a row of a block.
struct Row {
    uint32_t query, head;

    template <typename T>
    __device__ Row(const Task<T> &task, const Work &work, uint32_t row)
        : query((work.first_row + row) / task.group),
          head(work.kv_head * task.group + (work.first_row + row) % task.group) {}

    // Where its result is.
    template <typename T> __device__ size_t in_z(const Task<T> &task, const Work &work) const {
        return ((size_t(work.batch) * task.t + query) * task.h + head) * task.d_value;
    }
    template <typename T> __device__ size_t in_lse(const Task<T> &task, const Work &work) const {
        return (size_t(work.batch) * task.h + head) * task.t + query;
    }
};

// A key is seen from positions less than this behind it. From before it never: the difference is
// then 2^31 and more.
__device__ inline uint32_t reach_of(const Scores &scores) {
    constexpr uint32_t all = 0x80000000u;
    return scores.window == 0 || scores.window > all ? all : uint32_t(scores.window);
}

// Whether vectors can be read 16 bytes at a time.
template <typename T>
__device__ inline bool packed(const T *first, const Heads &at, uint32_t width) {
    return aligned(first) && (at.batch | at.pos | at.head | width) % PACK<T> == 0;
}

// Where a vector is, and whether it is there to be read.
template <typename T> struct Source {
    const T *from;
    bool there;
};

// Fills a tile of ROWS vectors, D wide, in shared memory; begins copies where the vectors are
// packed. `source` gives row i; zeros are what is not there, and beyond `width`.
template <int D, int ROWS, int THREADS, typename T, typename Of>
__device__ inline void fill(T *tile, uint32_t width, bool packed, Of source) {
    constexpr int N = PACK<T>, P = D / N, LANES = P % 8 == 0 ? 8 : 4;
    static_assert(P % LANES == 0 && THREADS % LANES == 0 && ROWS % (THREADS / LANES) == 0, "whole rows");
    const int lane = int(threadIdx.x) % LANES, first = int(threadIdx.x) / LANES;
    if (packed) {
#pragma unroll
        for (int rows = 0; rows < ROWS; rows += THREADS / LANES) {
            const Source<T> row = source(rows + first);
#pragma unroll
            for (int packs = 0; packs < P; packs += LANES) {
                const int pack = packs + lane;
                // Every 8 rows packs lie as before: the offsets between are known to the compiler.
                T *const to = tile + swizzled<P>(rows % 8 + first, pack) * N + rows / 8 * 8 * D;
                copy_async(to, row.from + pack * N, row.there && uint32_t(pack * N) < width);
            }
        }
        return;
    }
#pragma unroll 1
    for (int i = first; i < ROWS; i += THREADS / LANES) {
        const Source<T> row = source(i);
#pragma unroll 1
        for (int column = lane; column < D; column += LANES) {
            const bool there = row.there && uint32_t(column) < width;
            tile[swizzled<P>(i, column / N) * N + column % N] = there ? row.from[column] : narrow<T>(0.0f);
        }
    }
}

// The ring: tile after tile of keys and values, a piece each in turn.
template <int D, int KEYS, int SLOTS, int THREADS, typename T> struct Ring {
    const Task<T> &task;
    const Work &work;
    T *slots;
    const T *keys, *values;
    bool keys_packed, values_packed;

    __device__ Ring(const Task<T> &task, const Work &work, T *slots)
        : task(task), work(work), slots(slots),
          keys(task.k + start_of(task.k_at, work.batch, 0, work.kv_head)),
          values(task.v + start_of(task.v_at, work.batch, 0, work.kv_head)),
          keys_packed(packed(task.k, task.k_at, task.d)),
          values_packed(packed(task.v, task.v_at, task.d_value)) {}

    __device__ T *slot(uint32_t piece) const { return slots + piece % SLOTS * (KEYS * D); }

    // Begins to copy a piece, if there is one; a group of copies either way.
    template <bool OF_KEYS> __device__ void fetch(uint32_t piece) const {
        const uint32_t tile = work.first_tile + piece / 2;
        if (tile < work.end_tile) {
            const uint32_t first = tile * KEYS;
            const T *const from = OF_KEYS ? keys : values;
            const size_t step = OF_KEYS ? task.k_at.pos : task.v_at.pos;
            // What no row of the block sees may hold anything: it is not read.
            const auto source = [&](int row) -> Source<T> {
                const uint32_t key = first + row;
                return {from + key * step, key >= work.first_key && key < work.end};
            };
            fill<D, KEYS, THREADS>(slot(piece), OF_KEYS ? task.d : task.d_value,
                                   OF_KEYS ? keys_packed : values_packed, source);
        }
        commit();
    }

    // Begins with all pieces but the last that there are slots for.
    __device__ void begin() const {
        fetch<true>(0);
        if constexpr (SLOTS == 3) {
            fetch<false>(1);
        }
    }

    // Waits for a piece, while later ones are on their way, and begins the next one in the slot of
    // the one before. All threads must call it.
    template <bool OF_KEYS> __device__ const T *take(uint32_t piece) const {
        static_assert(SLOTS == 2 || SLOTS == 3, "one slot is worked on, one was");
        wait<SLOTS - 2>();
        __syncthreads();
        fetch<(SLOTS % 2 == 1) == OF_KEYS>(piece + SLOTS - 1);
        return slot(piece);
    }
};

// Begins to fill a tile of ROWS queries.
template <int D, int ROWS, int THREADS, typename T>
__device__ inline void fill_queries(T *tile, const Task<T> &task, const Work &work) {
    const bool whole = packed(task.q, task.q_at, task.d);
    fill<D, ROWS, THREADS>(tile, task.d, whole, [&](int row) -> Source<T> {
        const Row of(task, work, row);
        const T *const from = task.q + start_of(task.q_at, work.batch, of.query, of.head);
        return {from, uint32_t(row) < work.n_rows};
    });
}

// Products become scores times `factor`, in base 2.
struct Base2 {
    bool direct;
    float factor;

    // The order of products is that of scores unless they are capped or turned round.
    __device__ Base2(const Scores &scores)
        : direct(scores.soft_cap == 0.0f && scores.factor > 0.0f),
          factor(direct ? scores.factor * LOG2_E : 1.0f) {}

    __device__ float product(const Scores &scores, float x) const {
        return direct ? x : score(scores, x) * LOG2_E;
    }
};

// The online softmax of one row: the largest of `factor`ed numbers so far, the sum of exponentials
// relative to it.
struct Running {
    float top = NOTHING, sum = 0.0f;

    // The reference of exponentials. Its rounding is the same wherever it is used, as a product of
    // its own would not be.
    __device__ static float scaled(float top, float factor) { return fmaf(top, factor, 0.0f); }
    __device__ float base(float factor) const { return top == NOTHING ? 0.0f : scaled(top, factor); }

    // Raises the maximum; gives what the sums so far are multiplied with.
    __device__ float raise(float to, float factor) {
        const float before = scaled(top, factor);
        top = Max::join(top, to);
        return power_of_2(before - base(factor));
    }
};

// From a row's sum of exponentials relative to `base`, in base 2, to what multiplies its sums of
// values, and its lse; a sink joins.
__device__ inline float finish(float base, float sum, const float *sink, float &lse) {
    float weight = 1.0f;
    if (sink != nullptr) {
        const float extra = *sink * LOG2_E, top = Max::join(base, extra);
        weight = exp2f(base - top);
        sum = sum * weight + exp2f(extra - top);
        base = top;
    }
    lse = (base + log2f(sum)) * LN_2;
    return weight / sum;
}

// Which part of sums and bases is a row's.
template <typename T>
__device__ inline size_t part_of(const Task<T> &task, const Work &work, uint32_t row, uint32_t n_splits) {
    const size_t group = size_t(work.batch) * (task.h / task.group) + work.kv_head;
    return (group * (task.t * task.group) + work.first_row + row) * n_splits + work.split;
}

// Writes what takes no keys: zeros for the rows that are not valid. Whether that is all.
template <typename S, typename T>
__device__ inline bool without_keys(const Task<T> &task, const Work &work, const Whole<T> &to) {
    const uint32_t n_rows = min(task.t * task.group - work.first_row, uint32_t(S::ROWS));
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t row = work.n_rows + threadIdx.x / WARP; row < n_rows; row += S::THREADS / WARP) {
        const Row of(task, work, row);
        for (uint32_t i = lane; i < task.d_value; i += WARP) {
            to.z[of.in_z(task, work) + i] = narrow<T>(0.0f);
        }
        if (lane == 0) {
            to.lse[of.in_lse(task, work)] = 0.0f;
        }
    }
    return work.n_rows == 0;
}

// Writes that a part without keys is a sum of nothing. Whether it is one.
template <typename S, typename T>
__device__ inline bool without_keys(const Task<T> &task, const Work &work, const Part &to) {
    if (work.first_tile < work.end_tile) {
        return false;
    }
    for (uint32_t row = threadIdx.x; row < work.n_rows; row += S::THREADS) {
        float *const base = to.bases + 2 * part_of(task, work, row, to.n_splits);
        base[0] = NOTHING;
        base[1] = 0.0f;
    }
    return true;
}

// On tensor cores: WARPS of 16 TILES rows each, KEYS keys at a time, D / 8 * 4 TILES sums a lane.
template <int D_, int WARPS_, int TILES_, int KEYS_> struct Tensor {
    static constexpr int D = D_, WARPS = WARPS_, TILES = TILES_, KEYS = KEYS_, SLOTS = 3;
    static constexpr int THREADS = WARPS * WARP, ROWS_OF_WARP = TILES * 16, ROWS = WARPS * ROWS_OF_WARP;
    // Of a processor, as its registers allow.
    static constexpr int BLOCKS = 256 / THREADS;
};

template <typename S, typename T, typename To>
__device__ void attend(const Task<T> &task, const To &to) {
    constexpr int D = S::D, TILES = S::TILES, KEYS = S::KEYS, P = D / PACK<T>;
    DYNAMIC_SHARED(T, shared);
    T *const q_tile = shared;
    const Work work = work_of<S::ROWS, KEYS>(task, to.n_splits);
    if (without_keys<S>(task, work, to)) {
        return;
    }
    const Ring<D, KEYS, S::SLOTS, S::THREADS, T> ring(task, work, shared + S::ROWS * D);
    fill_queries<D, S::ROWS, S::THREADS>(q_tile, task, work);
    ring.begin();

    const uint32_t lane = threadIdx.x % WARP, warp_row = threadIdx.x / WARP * S::ROWS_OF_WARP;
    const uint32_t lowest = position(task, work, warp_row);
    const uint32_t highest = position(task, work, warp_row + S::ROWS_OF_WARP - 1);
    const Base2 base2(task.scores);
    const uint32_t reach = reach_of(task.scores);
    // Of the lane's rows: lane / 4 of each 16, and eight below.
    uint32_t positions[TILES][2];
    Running running[TILES][2];
    Accumulator sums[TILES][D / 8];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            positions[m][half] = position(task, work, warp_row + m * 16 + half * 8 + accumulator_row());
        }
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            sums[m][n] = {};
        }
    }

    for (uint32_t tile = work.first_tile, piece = 0; tile < work.end_tile; ++tile, piece += 2) {
        const uint32_t first = tile * KEYS, last = first + KEYS - 1;
        // Whether some row of the warp sees some key, and whether every row all of them.
        const bool some = first <= highest && (last >= lowest || lowest - last < reach);
        const bool all = last <= lowest && highest - first < reach;

        const T *const k_tile = ring.template take<true>(piece);
        FragmentA<T> weights[TILES][KEYS / 16];
        if (some) {
            Accumulator scores[TILES][KEYS / 8] = {};
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                FragmentA<T> a[TILES];
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    load_matrix_a<P>(a[m], q_tile, int(warp_row) + m * 16, k * 2);
                }
#pragma unroll
                for (int n = 0; n < KEYS / 16; ++n) {
                    FragmentB<T> b[2];
                    load_matrix_b<P>(b, k_tile, n * 16, k * 2);
#pragma unroll
                    for (int m = 0; m < TILES; ++m) {
                        mma(scores[m][2 * n], a[m], b[0]);
                        mma(scores[m][2 * n + 1], a[m], b[1]);
                    }
                }
            }
            if (!base2.direct) {
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            scores[m][n].values[i] = base2.product(task.scores, scores[m][n].values[i]);
                        }
                    }
                }
            }
            if (!all) {
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const uint32_t key = first + n * 8 + accumulator_column() + i % 2;
                            if (positions[m][i / 2] - key >= reach) {
                                scores[m][n].values[i] = NOTHING;
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    Running &row = running[m][half];
                    float top = NOTHING;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
                        const float *const two = scores[m][n].values + 2 * half;
                        top = Max::join(top, Max::join(two[0], two[1]));
                    }
                    top = Max::join(top, __shfl_xor_sync(WHOLE_WARP, top, 1));
                    top = Max::join(top, __shfl_xor_sync(WHOLE_WARP, top, 2));
                    const float rescale = row.raise(top, base2.factor), base = row.base(base2.factor);
                    float sum = 0.0f;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
                        float *const two = scores[m][n].values + 2 * half;
                        two[0] = power_of_2(fmaf(two[0], base2.factor, -base));
                        two[1] = power_of_2(fmaf(two[1], base2.factor, -base));
                        sum += two[0] + two[1];
                    }
                    row.sum = fmaf(row.sum, rescale, sum);
#pragma unroll
                    for (int n = 0; n < D / 8; ++n) {
                        sums[m][n].values[2 * half] *= rescale;
                        sums[m][n].values[2 * half + 1] *= rescale;
                    }
                }
#pragma unroll
                for (int n = 0; n < KEYS / 16; ++n) {
                    weights[m][n] = narrow_to_a<T>(scores[m][2 * n], scores[m][2 * n + 1]);
                }
            }
        }

        const T *const v_tile = ring.template take<false>(piece + 1);
        if (some) {
#pragma unroll
            for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
                for (int n = 0; n < D / 16; ++n) {
                    FragmentB<T> b[2];
                    load_matrix_b_by_rows<P>(b, v_tile, k * 16, n * 2);
#pragma unroll
                    for (int m = 0; m < TILES; ++m) {
                        mma(sums[m][2 * n], weights[m][k], b[0]);
                        mma(sums[m][2 * n + 1], weights[m][k], b[1]);
                    }
                }
            }
        }
    }

    // The queries of the warp make room for its results.
    __syncwarp();
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = warp_row + m * 16 + half * 8 + accumulator_row();
            const Running &of_row = running[m][half];
            float sum = of_row.sum;
            sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
            sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
            const float base = of_row.top == NOTHING ? NOTHING : of_row.base(base2.factor);
            const bool valid = row < work.n_rows;
            if constexpr (To::split) {
                if (valid) {
                    const size_t part = part_of(task, work, row, to.n_splits);
#pragma unroll
                    for (int n = 0; n < D / 8; ++n) {
                        const float *const two = sums[m][n].values + 2 * half;
                        *reinterpret_cast<float2 *>(to.sums + part * D + n * 8 + accumulator_column()) =
                            make_float2(two[0], two[1]);
                    }
                    if (lane % 4 == 0) {
                        to.bases[2 * part] = base;
                        to.bases[2 * part + 1] = sum;
                    }
                }
            } else {
                float lse;
                const Row of(task, work, row);
                const float *const sink = task.sinks == nullptr || !valid ? nullptr : task.sinks + of.head;
                const float factor = finish(base, sum, sink, lse);
                if (valid && lane % 4 == 0) {
                    to.lse[of.in_lse(task, work)] = lse;
                }
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    const float *const two = sums[m][n].values + 2 * half;
                    const uint32_t pair = pair_of<T>(two[0] * factor, two[1] * factor);
                    T *const at = q_tile + swizzled<P>(int(row), n) * PACK<T> + accumulator_column();
                    *reinterpret_cast<uint32_t *>(at) = pair;
                }
            }
        }
    }
    if constexpr (!To::split) {
        __syncwarp();
        const bool whole_packs = task.d_value % PACK<T> == 0;
        for (uint32_t i = lane; i < uint32_t(S::ROWS_OF_WARP * P); i += WARP) {
            const uint32_t row = warp_row + i / P, column = i % P * PACK<T>;
            if (row >= work.n_rows || column >= task.d_value) {
                continue;
            }
            const T *const from = q_tile + swizzled<P>(int(row), int(i % P)) * PACK<T>;
            T *const z = to.z + Row(task, work, row).in_z(task, work) + column;
            using Bytes = Pack<T, PACK<T>>;
            if (whole_packs) {
                *reinterpret_cast<Bytes *>(z) = *reinterpret_cast<const Bytes *>(from);
            } else {
                for (uint32_t j = 0; j < PACK<T> && column + j < task.d_value; ++j) {
                    z[j] = from[j];
                }
            }
        }
    }
}

// In f32: 16 threads for every 4 rows, each with every 16th key of KEYS and every 16th pack of
// columns.
template <int D_, int ROWS_, int KEYS_> struct Plain {
    static constexpr int D = D_, ROWS = ROWS_, KEYS = KEYS_, SLOTS = 2;
    static constexpr int THREADS = ROWS / 4 * 16;
    static constexpr int BLOCKS = (D > 128 ? 256 : 512) / THREADS;
    // Rows of weights, so that those of two quarters of a warp are in different banks.
    static constexpr int WEIGHTS = KEYS + 4;
};

// Four numbers of a tile in shared memory.
template <int P> __device__ inline float4 pack_of(const float *tile, int row, int pack) {
    return *reinterpret_cast<const float4 *>(tile + swizzled<P>(row, pack) * 4);
}

template <typename S, typename To> __device__ void attend(const Task<float> &task, const To &to) {
    constexpr int D = S::D, KEYS = S::KEYS, P = D / 4, OWN_KEYS = KEYS / 16, OWN_PACKS = P / 16;
    DYNAMIC_SHARED(float, shared);
    float *const q_tile = shared, *const w_tile = shared + (S::ROWS + S::SLOTS * KEYS) * D;
    const Work work = work_of<S::ROWS, KEYS>(task, to.n_splits);
    if (without_keys<S>(task, work, to)) {
        return;
    }
    const Ring<D, KEYS, S::SLOTS, S::THREADS, float> ring(task, work, shared + S::ROWS * D);
    fill_queries<D, S::ROWS, S::THREADS>(q_tile, task, work);
    ring.begin();

    const int column = int(threadIdx.x) % 16, own_row = int(threadIdx.x) / 16 * 4;
    const Base2 base2(task.scores);
    const uint32_t reach = reach_of(task.scores);
    uint32_t positions[4];
    Running running[4];
    float4 sums[4][OWN_PACKS];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        positions[r] = position(task, work, own_row + r);
#pragma unroll
        for (int i = 0; i < OWN_PACKS; ++i) {
            sums[r][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
    }

    for (uint32_t tile = work.first_tile, piece = 0; tile < work.end_tile; ++tile, piece += 2) {
        const float *const k_tile = ring.template take<true>(piece);
        float scores[4][OWN_KEYS] = {};
#pragma unroll 4
        for (int pack = 0; pack < P; ++pack) {
            float4 q[4], k[OWN_KEYS];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                q[r] = pack_of<P>(q_tile, own_row + r, pack);
            }
#pragma unroll
            for (int j = 0; j < OWN_KEYS; ++j) {
                k[j] = pack_of<P>(k_tile, column + 16 * j, pack);
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) {
#pragma unroll
                for (int j = 0; j < OWN_KEYS; ++j) {
                    scores[r][j] = fmaf(q[r].x, k[j].x, scores[r][j]);
                    scores[r][j] = fmaf(q[r].y, k[j].y, scores[r][j]);
                    scores[r][j] = fmaf(q[r].z, k[j].z, scores[r][j]);
                    scores[r][j] = fmaf(q[r].w, k[j].w, scores[r][j]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            Running &row = running[r];
            float top = NOTHING;
#pragma unroll
            for (int j = 0; j < OWN_KEYS; ++j) {
                const uint32_t key = tile * KEYS + column + 16 * j;
                scores[r][j] =
                    positions[r] - key < reach ? base2.product(task.scores, scores[r][j]) : NOTHING;
                top = Max::join(top, scores[r][j]);
            }
#pragma unroll
            for (int step = 8; step > 0; step /= 2) {
                top = Max::join(top, __shfl_xor_sync(WHOLE_WARP, top, step));
            }
            const float rescale = row.raise(top, base2.factor), base = row.base(base2.factor);
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < OWN_KEYS; ++j) {
                const float weight = exp2f(fmaf(scores[r][j], base2.factor, -base));
                sum += weight;
                w_tile[(own_row + r) * S::WEIGHTS + column + 16 * j] = weight;
            }
            row.sum = fmaf(row.sum, rescale, sum);
#pragma unroll
            for (int i = 0; i < OWN_PACKS; ++i) {
                float4 &own = sums[r][i];
                own = make_float4(own.x * rescale, own.y * rescale, own.z * rescale, own.w * rescale);
            }
        }

        // Waits for the weights as well.
        const float *const v_tile = ring.template take<false>(piece + 1);
#pragma unroll 2
        for (int key = 0; key < KEYS; key += 4) {
            float weights[4][4];
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const float *const from = w_tile + (own_row + r) * S::WEIGHTS + key;
                const float4 four = *reinterpret_cast<const float4 *>(from);
                weights[r][0] = four.x;
                weights[r][1] = four.y;
                weights[r][2] = four.z;
                weights[r][3] = four.w;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
#pragma unroll
                for (int i = 0; i < OWN_PACKS; ++i) {
                    const float4 v = pack_of<P>(v_tile, key + j, column + 16 * i);
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        float4 &own = sums[r][i];
                        own.x = fmaf(weights[r][j], v.x, own.x);
                        own.y = fmaf(weights[r][j], v.y, own.y);
                        own.z = fmaf(weights[r][j], v.z, own.z);
                        own.w = fmaf(weights[r][j], v.w, own.w);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const uint32_t row = own_row + r;
        float sum = running[r].sum;
#pragma unroll
        for (int step = 8; step > 0; step /= 2) {
            sum += __shfl_xor_sync(WHOLE_WARP, sum, step);
        }
        const float base = running[r].top == NOTHING ? NOTHING : running[r].base(base2.factor);
        if (row >= work.n_rows) {
            continue;
        }
        if constexpr (To::split) {
            const size_t part = part_of(task, work, row, to.n_splits);
#pragma unroll
            for (int i = 0; i < OWN_PACKS; ++i) {
                *reinterpret_cast<float4 *>(to.sums + part * D + (column + 16 * i) * 4) = sums[r][i];
            }
            if (column == 0) {
                to.bases[2 * part] = base;
                to.bases[2 * part + 1] = sum;
            }
        } else {
            float lse;
            const Row of(task, work, row);
            const float *const sink = task.sinks == nullptr ? nullptr : task.sinks + of.head;
            const float factor = finish(base, sum, sink, lse);
            if (column == 0) {
                to.lse[of.in_lse(task, work)] = lse;
            }
            float *const z = to.z + of.in_z(task, work);
#pragma unroll
            for (int i = 0; i < OWN_PACKS; ++i) {
                const float4 &own = sums[r][i];
                const float four[4] = {own.x * factor, own.y * factor, own.z * factor, own.w * factor};
                const uint32_t first = (column + 16 * i) * 4;
                if (task.d_value % 4 == 0 && first < task.d_value) {
                    store<4>(four, z + first);
                } else {
                    for (uint32_t j = 0; j < 4 && first + j < task.d_value; ++j) {
                        z[first + j] = four[j];
                    }
                }
            }
        }
    }
}

// Joins the parts of one query of one head.
template <typename T>
__device__ void combine(const float *sums, const float *bases, const uint32_t *lengths,
                        const float *sinks, T *z, float *lse, uint32_t n_splits, uint32_t width,
                        uint32_t t, uint32_t s, uint32_t h, uint32_t group, uint32_t d_value) {
    constexpr int AT_ONCE = 16;
    static_assert(WARP % AT_ONCE == 0 && MAX_SPLITS % WARP == 0, "no part beyond those with weights");
    __shared__ float weights[MAX_SPLITS];
    const uint32_t head = blockIdx.x % h, token = blockIdx.x / h, query = token % t, batch = token / t;
    z += size_t(blockIdx.x) * d_value;
    lse += (size_t(batch) * h + head) * t + query;
    if (query >= length_of(lengths, batch, t, s)) {
        for (uint32_t i = threadIdx.x; i < d_value; i += blockDim.x) {
            z[i] = narrow<T>(0.0f);
        }
        if (threadIdx.x == 0) {
            *lse = 0.0f;
        }
        return;
    }
    const size_t of_group = size_t(batch) * (h / group) + head / group;
    const size_t first = ((of_group * t + query) * group + head % group) * n_splits;
    sums += first * width;
    bases += first * 2;

    const uint32_t lane = threadIdx.x % WARP;
    float base = NOTHING;
    for (uint32_t split = lane; split < n_splits; split += WARP) {
        base = Max::join(base, bases[2 * split]);
    }
    base = over_warp<Max>(base);
    float sum = 0.0f;
    for (uint32_t split = lane; split < (n_splits + WARP - 1) / WARP * WARP; split += WARP) {
        // A part without keys has no sums of values either, nor has one that is not there.
        const float of_split = split < n_splits ? bases[2 * split + 1] : 0.0f;
        const float weight = of_split == 0.0f ? 0.0f : exp2f(bases[2 * split] - base);
        sum += weight * of_split;
        if (threadIdx.x < WARP) {
            weights[split] = weight;
        }
    }
    sum = over_warp<Sum>(sum);
    __syncthreads();
    float of_query;
    const float factor = finish(base, sum, sinks == nullptr ? nullptr : sinks + head, of_query);
    if (threadIdx.x == 0) {
        *lse = of_query;
    }
    for (uint32_t i = threadIdx.x; i < d_value; i += blockDim.x) {
        // Memory is what a thread waits for: for the sums of several parts at once.
        float total = 0.0f;
        for (uint32_t first = 0; first < n_splits; first += AT_ONCE) {
            float of_parts[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                const bool there = weights[first + j] != 0.0f;
                of_parts[j] = there ? sums[(first + j) * width + i] : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; ++j) {
                total = fmaf(weights[first + j], of_parts[j], total);
            }
        }
        z[i] = narrow<T>(total * factor);
    }
}

#define INPUTS(T)                                                                                  \
    const T *q, const T *k, const T *v, const uint32_t *lengths, const uint32_t *offsets, const float *sinks
#define SIZES                                                                                      \
    Heads q_at, Heads k_at, Heads v_at, Scores scores, size_t t, size_t s, size_t h, size_t group, \
        size_t d, size_t d_value
#define TASK(T)                                                                                    \
    Task<T> {                                                                                      \
        q, k, v, lengths, offsets, sinks, q_at, k_at, v_at, scores, uint32_t(t), uint32_t(s),      \
            uint32_t(h), uint32_t(group), uint32_t(d), uint32_t(d_value)                           \
    }
#define BOUNDS(...) __launch_bounds__(__VA_ARGS__::THREADS, __VA_ARGS__::BLOCKS)
#define ATTENTION(name, dtype, T, ...)                                                             \
    KERNEL(BOUNDS(__VA_ARGS__) attention_##name##_##dtype)                                         \
    (INPUTS(T), T *z, float *lse, SIZES) {                                                         \
        attend<__VA_ARGS__>(TASK(T), Whole<T>{z, lse});                                            \
    }                                                                                              \
    EXPORT(attention_##name##_##dtype)
#define DECODE(name, dtype, T, ...)                                                                \
    KERNEL(BOUNDS(__VA_ARGS__) attention_decode_##name##_##dtype)                                  \
    (INPUTS(T), float *sums, float *bases, SIZES, size_t n_splits) {                               \
        attend<__VA_ARGS__>(TASK(T), Part{sums, bases, uint32_t(n_splits)});                       \
    }                                                                                              \
    EXPORT(attention_decode_##name##_##dtype)
#define COMBINE(dtype, T)                                                                          \
    BOUNDED_KERNEL(128, 8, attention_combine_##dtype)                                              \
    (const float *sums, const float *bases, const uint32_t *lengths, const float *sinks, T *z,     \
     float *lse, size_t n_splits, size_t width, size_t t, size_t s, size_t h, size_t group,        \
     size_t d_value) {                                                                             \
        combine(sums, bases, lengths, sinks, z, lse, uint32_t(n_splits), uint32_t(width),          \
                uint32_t(t), uint32_t(s), uint32_t(h), uint32_t(group), uint32_t(d_value));        \
    }                                                                                              \
    EXPORT(attention_combine_##dtype)
#define ON_TENSOR_CORES(dtype, T)                                                                  \
    ATTENTION(64, dtype, T, Tensor<64, 4, 2, 64>)                                                  \
    ATTENTION(96, dtype, T, Tensor<96, 4, 2, 64>)                                                  \
    ATTENTION(128, dtype, T, Tensor<128, 4, 2, 64>)                                                \
    ATTENTION(192, dtype, T, Tensor<192, 4, 1, 32>)                                                \
    ATTENTION(256, dtype, T, Tensor<256, 4, 1, 32>)                                                \
    DECODE(64, dtype, T, Tensor<64, 1, 1, 32>)                                                     \
    DECODE(128, dtype, T, Tensor<128, 1, 1, 32>)                                                   \
    DECODE(256, dtype, T, Tensor<256, 1, 1, 32>)
ON_TENSOR_CORES(bf16, bf16)
ON_TENSOR_CORES(f16, f16)
ATTENTION(64, f32, float, Plain<64, 64, 32>)
ATTENTION(128, f32, float, Plain<128, 64, 32>)
ATTENTION(256, f32, float, Plain<256, 32, 16>)
DECODE(64, f32, float, Plain<64, 16, 32>)
DECODE(128, f32, float, Plain<128, 16, 32>)
DECODE(256, f32, float, Plain<256, 16, 16>)
EVERY_DTYPE(COMBINE)
