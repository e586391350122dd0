// Weights in the block formats of GGUF files: unpacked, and multiplied as they are.
//
//   unpack   the numbers that blocks stand for, of all rows or of chosen ones
//   product  y = x W^T for at most eight rows of x
//   chosen   the same for one row of x at a time, each with a matrix of its own: mixtures of few
//            tokens
//
// A row's blocks lie as planes: what files hold in a block is split into fields, and a plane has one
// field of every block, wide fields first, so that every access is aligned to what it reads. A row
// begins at a multiple of 16 bytes. It takes the file's bytes, and at most 15 more.
//
// A part is 32 weights of a row, w = scale (q - ZERO) + offset, with one scale and offset for each
// 16. It is read at once, most of it by 16-byte accesses, as 8 words of 4 numbers q; a byte becomes
// a number as the last bits of 2^23 + q.
//
// unpack: a thread writes 8 numbers, so that a warp's writes lie behind one another; the four
// threads of a part read the same bytes. Two f32 roundings, as on the CPU, then one to storage. An
// id that is no row gives NaN: it cannot be refused here.
//
// product: a block of up to 4 warps takes two rows of weights, four for one row of x, a lane one part
// of each at a time, so that numbers of x, which come from the cache and meet in few of its banks,
// serve all of them. The weights are not rounded to storage:
// 16 products x (q - ZERO) are added up, then multiplied by the scale, and the offset by the sum of
// the 16 x. Sums in f32, over lanes as a tree, over warps in their order; the same for any m. For
// finite numbers this is finite while |x| < 2^115.
//
// What it should reach, by its instructions: one row of x takes 5 to 6.5 for a weight in rows of 4096,
// with which an H100 issues 11 to 14 bytes of 4-bit blocks in a cycle of a multiprocessor, where its
// memory has 15: four bits are at the balance, more are bound by the bandwidth of the blocks, two and
// three bits by instructions; from four rows of x on the products themselves bound it.
//
// Requires, unpack: blocks of one dimension, `segments` of them for a row. product: blocks (32, w),
// w <= 4, ceil(d_out / 2) of them, of product1 ceil(d_out / 4); 1 <= m <= M. chosen: as product1,
// times slots along y.
//
//   blocks  [rows, row_bytes]      n_blocks blocks each, as planes; 16-byte aligned
//   ids     [rows of y]            u32, or null: the rows in their order
//   x       [m, n_blocks * block]  contiguous, 16-byte aligned; of chosen: [slots / share, ..]
//   y       [rows of y, n_blocks * block], [m, d_out], [slots, d_out]  contiguous
//   chosen  [slots]                u32: which d_out rows of blocks; NaN where there are none such
#include "common/pack.cuh"
#include "common/reduce.cuh"

constexpr int PART = 32;
constexpr int HALF = PART / 2;
// Weights that a thread unpacks, or multiplies with the same numbers of x, at once.
constexpr int PIECE = 8;

struct Part {
    // Four numbers of 8 bits in each word.
    uint32_t quants[PART / 4];
    float scale[2];
    float offset[2];
};

// N words, 16 bytes at once; requires aligned(from).
template <int N> __device__ inline void words(const uint8_t *from, uint32_t (&to)[N]) {
    static_assert(N % 4 == 0, "whole accesses");
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        const uint4 four = reinterpret_cast<const uint4 *>(from)[i];
        to[4 * i] = four.x;
        to[4 * i + 1] = four.y;
        to[4 * i + 2] = four.z;
        to[4 * i + 3] = four.w;
    }
}

template <typename T> __device__ inline T at(const uint8_t *from) {
    return *reinterpret_cast<const T *>(from);
}

__device__ inline float half_number(uint32_t bits) {
    return __half2float(__ushort_as_half(uint16_t(bits)));
}

__device__ inline void uniform(Part &part, float scale, float offset) {
    part.scale[0] = part.scale[1] = scale;
    part.offset[0] = part.offset[1] = offset;
}

// Sixteen bytes: byte j holds number j (low half) and 16 + j.
__device__ inline void nibbles(const uint8_t *from, Part &part) {
    uint32_t both[4];
    words(from, both);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        part.quants[i] = both[i] & 0x0f0f0f0fu;
        part.quants[4 + i] = both[i] >> 4 & 0x0f0f0f0fu;
    }
}

// A fifth bit for each number, in their order.
__device__ inline void fifth_bits(uint32_t high, Part &part) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        // Bit j of four goes to bit 8 j.
        const uint32_t spread = (high >> 4 * i & 15) * 0x00204081u & 0x01010101u;
        part.quants[i] |= spread << 4;
    }
}

// The formats. `row` is the first byte of a row of n blocks; part `index` of the row is read.

struct Q4_0 {
    static constexpr int PARTS = 1;
    static constexpr int ZERO = 8;
    static constexpr bool OFFSET = false;
    // Numbers | d
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        Part part;
        nibbles(row + 16 * index, part);
        uniform(part, half_number(at<uint16_t>(row + 16 * n + 2 * index)), 0.0f);
        return part;
    }
};

struct Q4_1 {
    static constexpr int PARTS = 1;
    static constexpr int ZERO = 0;
    static constexpr bool OFFSET = true;
    // Numbers | d, m
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        Part part;
        nibbles(row + 16 * index, part);
        const uint32_t both = at<uint32_t>(row + 16 * n + 4 * index);
        uniform(part, half_number(both), half_number(both >> 16));
        return part;
    }
};

struct Q5_0 {
    static constexpr int PARTS = 1;
    static constexpr int ZERO = 16;
    static constexpr bool OFFSET = false;
    // Numbers | fifth bits | d
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        Part part;
        nibbles(row + 16 * index, part);
        fifth_bits(at<uint32_t>(row + 16 * n + 4 * index), part);
        uniform(part, half_number(at<uint16_t>(row + 20 * n + 2 * index)), 0.0f);
        return part;
    }
};

struct Q5_1 {
    static constexpr int PARTS = 1;
    static constexpr int ZERO = 0;
    static constexpr bool OFFSET = true;
    // Numbers | d, m, fifth bits
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        Part part;
        nibbles(row + 16 * index, part);
        const uint2 rest = at<uint2>(row + 16 * n + 8 * index);
        fifth_bits(rest.y, part);
        uniform(part, half_number(rest.x), half_number(rest.x >> 16));
        return part;
    }
};

struct Q8_0 {
    static constexpr int PARTS = 1;
    static constexpr int ZERO = 128;
    static constexpr bool OFFSET = false;
    // Numbers, signed | d
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        Part part;
        words(row + 32 * index, part.quants);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part.quants[i] ^= 0x80808080u;
        }
        uniform(part, half_number(at<uint16_t>(row + 32 * n + 2 * index)), 0.0f);
        return part;
    }
};

struct Q2_K {
    static constexpr int PARTS = 8;
    static constexpr int ZERO = 0;
    static constexpr bool OFFSET = true;
    // Scales and offsets, 4 bits each, numbers (4 to a byte, 32 apart) | d, m
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        const size_t block = index / 8;
        const int part_of_block = int(index % 8);
        const uint8_t *fields = row + 80 * block;
        Part part;
        words(fields + 16 + part_of_block / 4 * 32, part.quants);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part.quants[i] = part.quants[i] >> part_of_block % 4 * 2 & 0x03030303u;
        }
        const uint32_t scales = at<uint16_t>(fields + 2 * part_of_block);
        const uint32_t both = at<uint32_t>(row + 80 * n + 4 * block);
        const float d = half_number(both), m = half_number(both >> 16);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            part.scale[half] = __fmul_rn(d, float(scales >> 8 * half & 15));
            part.offset[half] = -__fmul_rn(m, float(scales >> (8 * half + 4) & 15));
        }
        return part;
    }
};

struct Q3_K {
    static constexpr int PARTS = 8;
    static constexpr int ZERO = 4;
    static constexpr bool OFFSET = false;
    // Third bits (8 to a byte, 32 apart), numbers as in Q2_K | scales of 6 bits | d
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        const size_t block = index / 8;
        const int part_of_block = int(index % 8);
        const uint8_t *fields = row + 96 * block, *scales = row + 96 * n + 12 * block;
        Part part;
        uint32_t third[8];
        words(fields, third);
        words(fields + 32 + part_of_block / 4 * 32, part.quants);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part.quants[i] = (part.quants[i] >> part_of_block % 4 * 2 & 0x03030303u) |
                             (third[i] >> part_of_block & 0x01010101u) << 2;
        }
        // Scale j of 16: 4 bits in byte j % 8, its half j / 8; 2 bits in byte 8 + j % 4, from bit
        // j / 4 * 2 on. A part has two neighbours.
        const uint32_t low = at<uint16_t>(scales + 2 * part_of_block % 8) >> part_of_block / 4 * 4;
        const uint32_t high = at<uint16_t>(scales + 8 + 2 * part_of_block % 4) >> part_of_block / 2 * 2;
        const float d = half_number(at<uint16_t>(row + 108 * n + 2 * block));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t scale = (low >> 8 * half & 15) | (high >> 8 * half & 3) << 4;
            part.scale[half] = __fmul_rn(d, float(int(scale) - 32));
            part.offset[half] = 0.0f;
        }
        return part;
    }
};

// d, m, then eight scales and offsets of 6 bits, in 16 bytes: those of a part.
__device__ inline void six_bits(const uint8_t *from, int part_of_block, Part &part) {
    const uint4 header = at<uint4>(from);
    const int shift = part_of_block % 4 * 8;
    uint32_t scale, offset;
    if (part_of_block < 4) {
        scale = header.y >> shift & 63;
        offset = header.z >> shift & 63;
    } else {
        scale = (header.w >> shift & 15) | (header.y >> (shift + 6) & 3) << 4;
        offset = (header.w >> (shift + 4) & 15) | (header.z >> (shift + 6) & 3) << 4;
    }
    const float d = half_number(header.x), m = half_number(header.x >> 16);
    uniform(part, __fmul_rn(d, float(scale)), -__fmul_rn(m, float(offset)));
}

struct Q4_K {
    static constexpr int PARTS = 8;
    static constexpr int ZERO = 0;
    static constexpr bool OFFSET = true;
    // d, m, scales and offsets, numbers (2 to a byte, 32 apart)
    __device__ static Part read(const uint8_t *row, size_t, size_t index) {
        const int part_of_block = int(index % 8);
        const uint8_t *fields = row + 144 * (index / 8);
        Part part;
        words(fields + 16 + part_of_block / 2 * 32, part.quants);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part.quants[i] = part.quants[i] >> part_of_block % 2 * 4 & 0x0f0f0f0fu;
        }
        six_bits(fields, part_of_block, part);
        return part;
    }
};

struct Q5_K {
    static constexpr int PARTS = 8;
    static constexpr int ZERO = 0;
    static constexpr bool OFFSET = true;
    // d, m, scales and offsets, fifth bits (8 to a byte, 32 apart), numbers as in Q4_K
    __device__ static Part read(const uint8_t *row, size_t, size_t index) {
        const int part_of_block = int(index % 8);
        const uint8_t *fields = row + 176 * (index / 8);
        Part part;
        uint32_t fifth[8];
        words(fields + 16, fifth);
        words(fields + 48 + part_of_block / 2 * 32, part.quants);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part.quants[i] = (part.quants[i] >> part_of_block % 2 * 4 & 0x0f0f0f0fu) |
                             (fifth[i] >> part_of_block & 0x01010101u) << 4;
        }
        six_bits(fields, part_of_block, part);
        return part;
    }
};

struct Q6_K {
    static constexpr int PARTS = 8;
    static constexpr int ZERO = 32;
    static constexpr bool OFFSET = false;
    // Low halves, upper two bits (4 to a byte, 32 apart), scales of 8 bits, signed | d
    __device__ static Part read(const uint8_t *row, size_t n, size_t index) {
        const size_t block = index / 8;
        const int part_of_block = int(index % 8), line = part_of_block % 4;
        const uint8_t *fields = row + 208 * block;
        Part part;
        uint32_t upper[8];
        words(fields + part_of_block / 4 * 64 + line % 2 * 32, part.quants);
        words(fields + 128 + part_of_block / 4 * 32, upper);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            part.quants[i] = (part.quants[i] >> line / 2 * 4 & 0x0f0f0f0fu) |
                             (upper[i] >> line * 2 & 0x03030303u) << 4;
        }
        const uint32_t scales = at<uint16_t>(fields + 192 + 2 * part_of_block);
        const float d = half_number(at<uint16_t>(row + 208 * n + 2 * block));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            part.scale[half] = __fmul_rn(d, float(int8_t(scales >> 8 * half)));
            part.offset[half] = 0.0f;
        }
        return part;
    }
};

// q - zero of two words.
template <int ZERO> __device__ inline void numbers(uint32_t first, uint32_t second, float (&to)[PIECE]) {
    constexpr uint32_t BIG = 0x4b000000u; // 2^23
#pragma unroll
    for (int i = 0; i < PIECE; ++i) {
        const uint32_t bits = __byte_perm(i < 4 ? first : second, BIG, 0x7650 + i % 4);
        to[i] = __uint_as_float(bits) - float((1 << 23) + ZERO);
    }
}

template <typename Format, typename T>
__device__ void unpack(const uint32_t *blocks, const uint32_t *ids, T *y, size_t n_rows, size_t row_bytes,
                       size_t n_blocks, size_t segments) {
    constexpr int PIECES = PART / PIECE;
    const size_t row = blockIdx.x / unsigned(segments);
    const size_t piece = size_t(blockIdx.x % unsigned(segments)) * blockDim.x + threadIdx.x;
    const size_t pieces = n_blocks * Format::PARTS * PIECES;
    if (piece >= pieces) {
        return;
    }
    y += (row * pieces + piece) * PIECE;
    const size_t from = ids == nullptr ? row : size_t(ids[row]);
    float values[PIECE];
    if (from >= n_rows) {
#pragma unroll
        for (int i = 0; i < PIECE; ++i) {
            values[i] = __builtin_nanf("");
        }
        store(values, y);
        return;
    }
    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(blocks) + from * row_bytes;
    const Part part = Format::read(bytes, n_blocks, piece / PIECES);
    const int own = int(piece % PIECES);
    // Registers have no index: a word is chosen among four.
    uint32_t chosen[2] = {part.quants[0], part.quants[1]};
#pragma unroll
    for (int i = 1; i < PIECES; ++i) {
        if (own == i) {
            chosen[0] = part.quants[2 * i];
            chosen[1] = part.quants[2 * i + 1];
        }
    }
    const float scale = own < 2 ? part.scale[0] : part.scale[1];
    const float offset = own < 2 ? part.offset[0] : part.offset[1];
    numbers<Format::ZERO>(chosen[0], chosen[1], values);
#pragma unroll
    for (int i = 0; i < PIECE; ++i) {
        values[i] = __fmul_rn(values[i], scale);
        if (Format::OFFSET) {
            values[i] = __fadd_rn(values[i], offset);
        }
    }
    store(values, y);
}

// Rows of weights of a block of threads, for at most M rows of x.
template <int M> constexpr int ROWS = M == 1 ? 4 : 2;
constexpr int MAX_WARPS = 4;

// For m <= M rows of x.
template <typename Format, int M, typename T>
__device__ void product(const uint8_t *blocks, const T *x, T *y, size_t row_bytes, size_t n_blocks,
                        size_t d_out, size_t m) {
    constexpr int N = ROWS<M>;
    const size_t first = size_t(blockIdx.x) * N;
    const size_t parts = n_blocks * Format::PARTS;
    const size_t d_in = parts * PART;
    const uint8_t *rows[N];
#pragma unroll
    for (int r = 0; r < N; ++r) {
        // Of a row that is not there, the last one; its results are not written.
        const size_t row = first + r < d_out ? first + r : d_out - 1;
        rows[r] = blocks + row * row_bytes;
    }
    float sums[N][M] = {};
    for (size_t index = threadIdx.y * WARP + threadIdx.x; index < parts; index += blockDim.y * WARP) {
        Part own[N];
#pragma unroll
        for (int r = 0; r < N; ++r) {
            own[r] = Format::read(rows[r], n_blocks, index);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float products[N][M] = {}, of_x[M] = {};
#pragma unroll
            for (int piece = 0; piece < HALF / PIECE; ++piece) {
                const int word = half * HALF / 4 + piece * PIECE / 4;
                float q[N][PIECE];
#pragma unroll
                for (int r = 0; r < N; ++r) {
                    numbers<Format::ZERO>(own[r].quants[word], own[r].quants[word + 1], q[r]);
                }
#pragma unroll
                for (int i = 0; i < M; ++i) {
                    const size_t line = size_t(i) < m ? i : m - 1;
                    float values[PIECE];
                    load(x + line * d_in + index * PART + 4 * word, values);
#pragma unroll
                    for (int j = 0; j < PIECE; ++j) {
                        if (Format::OFFSET) {
                            of_x[i] += values[j];
                        }
#pragma unroll
                        for (int r = 0; r < N; ++r) {
                            products[r][i] = fmaf(q[r][j], values[j], products[r][i]);
                        }
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < N; ++r) {
#pragma unroll
                for (int i = 0; i < M; ++i) {
                    sums[r][i] = fmaf(own[r].scale[half], products[r][i], sums[r][i]);
                    if (Format::OFFSET) {
                        sums[r][i] = fmaf(own[r].offset[half], of_x[i], sums[r][i]);
                    }
                }
            }
        }
    }
    __shared__ float of_warps[MAX_WARPS][N * M];
#pragma unroll
    for (int r = 0; r < N; ++r) {
#pragma unroll
        for (int i = 0; i < M; ++i) {
            const float sum = over_warp<Sum>(sums[r][i]);
            if (threadIdx.x == 0) {
                of_warps[threadIdx.y][r * M + i] = sum;
            }
        }
    }
    __syncthreads();
    const size_t i = threadIdx.x % M, row = first + threadIdx.x / M;
    if (threadIdx.y == 0 && threadIdx.x < N * M && i < m && row < d_out) {
        float sum = 0.0f;
        for (unsigned warp = 0; warp < blockDim.y; ++warp) {
            sum += of_warps[warp][threadIdx.x];
        }
        y[i * d_out + row] = narrow<T>(sum);
    }
}

template <typename Format, typename T>
__device__ void product_with_chosen(const uint32_t *blocks, const uint32_t *chosen, const T *x, T *y,
                                    size_t n_matrices, size_t row_bytes, size_t n_blocks, size_t d_out,
                                    size_t share) {
    const size_t slot = blockIdx.y, matrix = chosen[slot];
    y += slot * d_out;
    if (matrix >= n_matrices) {
        const size_t row = size_t(blockIdx.x) * ROWS<1> + threadIdx.x;
        if (threadIdx.y == 0 && threadIdx.x < ROWS<1> && row < d_out) {
            y[row] = narrow<T>(__builtin_nanf(""));
        }
        return;
    }
    const uint8_t *own = reinterpret_cast<const uint8_t *>(blocks) + matrix * d_out * row_bytes;
    x += slot / share * (n_blocks * Format::PARTS * PART);
    product<Format, 1>(own, x, y, row_bytes, n_blocks, d_out, 1);
}

#define UNPACK(format, Format, dtype, T)                                                           \
    KERNEL(quantized_unpack_##format##_##dtype)                                                    \
    (const uint32_t *blocks, const uint32_t *ids, T *y, size_t n_rows, size_t row_bytes,           \
     size_t n_blocks, size_t segments) {                                                           \
        unpack<Format>(blocks, ids, y, n_rows, row_bytes, n_blocks, segments);                     \
    }                                                                                              \
    EXPORT(quantized_unpack_##format##_##dtype)

#define PRODUCT(format, Format, m_most, dtype, T)                                                  \
    KERNEL(quantized_product##m_most##_##format##_##dtype)                                         \
    (const uint32_t *blocks, const T *x, T *y, size_t row_bytes, size_t n_blocks, size_t d_out,    \
     size_t m) {                                                                                   \
        const uint8_t *bytes = reinterpret_cast<const uint8_t *>(blocks);                          \
        product<Format, m_most>(bytes, x, y, row_bytes, n_blocks, d_out, m);                       \
    }                                                                                              \
    EXPORT(quantized_product##m_most##_##format##_##dtype)

#define CHOSEN(format, Format, dtype, T)                                                           \
    KERNEL(quantized_chosen_##format##_##dtype)                                                    \
    (const uint32_t *blocks, const uint32_t *chosen, const T *x, T *y, size_t n_matrices,          \
     size_t row_bytes, size_t n_blocks, size_t d_out, size_t share) {                              \
        product_with_chosen<Format>(blocks, chosen, x, y, n_matrices, row_bytes, n_blocks, d_out,  \
                                    share);                                                        \
    }                                                                                              \
    EXPORT(quantized_chosen_##format##_##dtype)

#define OPERATIONS(format, Format, dtype, T)                                                       \
    UNPACK(format, Format, dtype, T)                                                               \
    PRODUCT(format, Format, 1, dtype, T)                                                           \
    PRODUCT(format, Format, 2, dtype, T)                                                           \
    PRODUCT(format, Format, 4, dtype, T)                                                           \
    PRODUCT(format, Format, 8, dtype, T)                                                           \
    CHOSEN(format, Format, dtype, T)

#define FORMAT(format, Format)                                                                     \
    OPERATIONS(format, Format, bf16, bf16)                                                         \
    OPERATIONS(format, Format, f16, f16)                                                           \
    OPERATIONS(format, Format, f32, float)

FORMAT(q4_0, Q4_0)
FORMAT(q4_1, Q4_1)
FORMAT(q5_0, Q5_0)
FORMAT(q5_1, Q5_1)
FORMAT(q8_0, Q8_0)
FORMAT(q2_k, Q2_K)
FORMAT(q3_k, Q3_K)
FORMAT(q4_k, Q4_K)
FORMAT(q5_k, Q5_K)
FORMAT(q6_k, Q6_K)
