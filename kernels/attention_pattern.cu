// The pattern of chosen heads, a = exp(s - lse), s the score of a query and a key; or the scores
// themselves. Beside the forward pass, whose log-sum-exp it takes: what else the softmax is over, a
// sink logit, is in there and needs nothing here.
//
// A block makes 64 x 64 of the matrix of one head (common/products.cuh). A tile that no query sees
// into is filled without being multiplied. Where a query does not see a key, and in rows beyond the
// valid length, a is 0 and s minus infinity. A head that is not there, and a row whose length and
// offset do not fit the queries and keys, give NaN: here nobody reads them to refuse them.
//
// Requires 256 threads; b c ceil(t / 64) ceil(s / 64) blocks, keys fastest; h a multiple of h_kv. Query head i
// reads key head i / (h / h_kv).
//
//   q        [b, t, h, d]     any strides, last axis contiguous
//   k        [b, s, h_kv, d]  the same
//   lengths  [b]              u32, valid queries of each row
//   offsets  [b]              u32, keys before each row's first query
//   lse      [b, h, t]        f32, contiguous; null: the scores
//   heads    [c]              u32
//   out      [b, c, t, s]     f32, contiguous
#include "common/products.cuh"

template <typename T>
__device__ void pattern(const T *q, const T *k, const uint32_t *lengths, const uint32_t *offsets,
                        const float *lse, const uint32_t *heads, float *out, const Heads &q_at,
                        const Heads &k_at, const Scores &scores, size_t t, size_t s, size_t h,
                        size_t h_kv, size_t d, size_t c) {
    const size_t key_tiles = (s + TILE - 1) / TILE, query_tiles = (t + TILE - 1) / TILE;
    size_t index = blockIdx.x;
    const size_t first_of_keys = index % key_tiles * TILE;
    index /= key_tiles;
    const size_t first_query = index % query_tiles * TILE;
    index /= query_tiles;
    const size_t slot = index % c, row = index / c;
    const size_t head = heads[slot];
    const Extent valid = extent(lengths, offsets, row, t, s);

    const bool known = valid.fits && head < h;
    const float hidden = !known             ? __builtin_nanf("")
                         : lse == nullptr   ? -__builtin_huge_valf()
                                            : 0.0f;
    const size_t end = smaller(first_query + TILE, valid.length);
    float products[PER_THREAD][PER_THREAD];
    // Whether the last query sees the first key, and the first query not only keys behind the tile.
    const bool seen = known && first_query < end && first_of_keys < valid.offset + end &&
                      first_of_keys + TILE > first_key(scores, valid.offset + first_query);
    if (seen) {
        const size_t kv_head = head / (h / h_kv);
        const size_t keys = smaller(TILE, valid.offset + valid.length - first_of_keys);
        tile_products<T>({q + start_of(q_at, row, first_query, head), size_t(q_at.pos)},
                         int(end - first_query),
                         {k + start_of(k_at, row, first_of_keys, kv_head), size_t(k_at.pos)},
                         int(keys), d, products);
    }
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        const size_t query = first_query + tile_query(i);
        if (query >= t) {
            break;
        }
        const size_t position = valid.offset + query;
        const float of_query =
            seen && query < end && lse != nullptr ? lse[(row * h + head) * t + query] : 0.0f;
        float *const line = out + ((row * c + slot) * t + query) * s;
#pragma unroll
        for (int j = 0; j < PER_THREAD; ++j) {
            const size_t key = first_of_keys + tile_key(j);
            if (key >= s) {
                break;
            }
            float value = hidden;
            if (seen && query < end && key <= position && key >= first_key(scores, position)) {
                value = score(scores, products[i][j]);
                value = lse == nullptr ? value : expf(value - of_query);
            }
            line[key] = value;
        }
    }
}

#define PATTERN(dtype, T)                                                                          \
    KERNEL(attention_pattern_##dtype)                                                              \
    (const T *q, const T *k, const uint32_t *lengths, const uint32_t *offsets, const float *lse,   \
     const uint32_t *heads, float *out, Heads q_at, Heads k_at, Scores scores, size_t t, size_t s, \
     size_t h, size_t h_kv, size_t d, size_t c) {                                                  \
        pattern(q, k, lengths, offsets, lse, heads, out, q_at, k_at, scores, t, s, h, h_kv, d, c); \
    }                                                                                              \
    EXPORT(attention_pattern_##dtype)
EVERY_DTYPE(PATTERN)
