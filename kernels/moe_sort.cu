// Routed entries by expert: the slots (token * k + rank) of each expert, ascending, and where each
// expert's begin. The first part of a mixture of experts (moe.cu).
//
// A counting sort in three launches, stable and hence deterministic, of any number of slots below
// 2^31: `count` the slots of each expert in each piece of 2048, a block's; `scan` each expert's
// counts over the pieces, a block's; `scatter` each piece: a warp takes 256 slots in turns of 32, in
// which the lanes of one expert find one another, so that a slot's place is where its expert's
// begin, its piece's, its warp's, and the lanes below it.
//
// Reads the indices twice and writes the slots once; 8 n bytes of counts for every 2048 / e slots
// are little beside. For a million slots that is some 10 us; for a prompt's, three launches.
//
// An index that is no expert, >= e, has a bin of its own behind all experts, which is no tile's.
//
// Requires blocks of 256 threads: ceil(n / 2048), e + 1, ceil(n / 2048) of them. e <= 512.
//
//   indices  [n]
//   counts   [e + 1, pieces]  slots in a piece
//   starts   [e + 1, pieces]  slots in the pieces before
//   totals   [e + 1]          slots in all pieces
//   slots    [n]              sorted
//   groups   [e + 1]          where an expert's slots begin; the last one: where the others begin
//   tiles    [e + 1]          how many tiles of `rows` slots of one expert there are before it
#include "common/device.cuh"

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;
constexpr unsigned TURNS = 8, PIECE = THREADS * TURNS;
constexpr unsigned MAX_BINS = 512 + 1;
constexpr unsigned BINS_OF_A_THREAD = (MAX_BINS + THREADS - 1) / THREADS;

__device__ inline uint32_t bin_of(uint32_t index, size_t e) {
    return index < e ? index : uint32_t(e);
}

// The sum over the threads before this one, and over all of the block, which must call it.
__device__ inline uint32_t sum_before(uint32_t x, uint32_t &all) {
    __shared__ uint32_t sums[WARPS];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    uint32_t through = x;
#pragma unroll
    for (unsigned step = 1; step < WARP; step *= 2) {
        const uint32_t below = __shfl_up_sync(WHOLE_WARP, through, step);
        through += lane >= step ? below : 0;
    }
    // Those of the call before may still be read.
    __syncthreads();
    if (lane == WARP - 1) {
        sums[warp] = through;
    }
    __syncthreads();
    uint32_t before = through - x;
    all = 0;
#pragma unroll
    for (unsigned i = 0; i < WARPS; ++i) {
        before += i < warp ? sums[i] : 0;
        all += sums[i];
    }
    return before;
}

KERNEL(moe_sort_count_u32)(const uint32_t *indices, uint32_t *counts, size_t n, size_t e) {
    __shared__ uint32_t own[MAX_BINS];
    for (unsigned bin = threadIdx.x; bin <= e; bin += THREADS) {
        own[bin] = 0;
    }
    __syncthreads();
    const size_t first = size_t(blockIdx.x) * PIECE, end = first + PIECE < n ? first + PIECE : n;
    for (size_t i = first + threadIdx.x; i < end; i += THREADS) {
        atomicAdd(&own[bin_of(indices[i], e)], 1u);
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin <= e; bin += THREADS) {
        counts[bin * size_t(gridDim.x) + blockIdx.x] = own[bin];
    }
}
EXPORT(moe_sort_count_u32)

KERNEL(moe_sort_scan_u32)
(const uint32_t *counts, uint32_t *starts, uint32_t *totals, size_t pieces) {
    counts += blockIdx.x * pieces;
    starts += blockIdx.x * pieces;
    uint32_t before = 0;
    for (size_t first = 0; first < pieces; first += THREADS) {
        const size_t i = first + threadIdx.x;
        uint32_t all;
        const uint32_t within = sum_before(i < pieces ? counts[i] : 0, all);
        if (i < pieces) {
            starts[i] = before + within;
        }
        before += all;
    }
    if (threadIdx.x == 0) {
        totals[blockIdx.x] = before;
    }
}
EXPORT(moe_sort_scan_u32)

KERNEL(moe_sort_scatter_u32)
(const uint32_t *indices, const uint32_t *starts, const uint32_t *totals, uint32_t *slots,
 uint32_t *groups, uint32_t *tiles, size_t n, size_t e, size_t rows) {
    // How many slots of each bin a warp has; then where the next one of them goes.
    __shared__ uint32_t next[WARPS][MAX_BINS];
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (unsigned bin = lane; bin <= e; bin += WARP) {
        next[warp][bin] = 0;
    }
    __syncwarp();
    const size_t first = size_t(blockIdx.x) * PIECE + warp * (TURNS * WARP) + lane;
    for (unsigned turn = 0; turn < TURNS; ++turn) {
        const size_t i = first + turn * WARP;
        if (i < n) {
            atomicAdd(&next[warp][bin_of(indices[i], e)], 1u);
        }
    }

    uint32_t own[BINS_OF_A_THREAD], sum = 0, tiles_of_own = 0, all;
#pragma unroll
    for (unsigned j = 0; j < BINS_OF_A_THREAD; ++j) {
        const unsigned bin = threadIdx.x * BINS_OF_A_THREAD + j;
        own[j] = bin <= e ? totals[bin] : 0;
        sum += own[j];
        tiles_of_own += bin < e ? uint32_t((own[j] + rows - 1) / rows) : 0;
    }
    // Beyond its barriers every warp has counted.
    uint32_t begin = sum_before(sum, all);
    uint32_t tile = sum_before(tiles_of_own, all);
#pragma unroll
    for (unsigned j = 0; j < BINS_OF_A_THREAD; ++j) {
        const unsigned bin = threadIdx.x * BINS_OF_A_THREAD + j;
        if (bin <= e) {
            uint32_t place = begin + starts[bin * size_t(gridDim.x) + blockIdx.x];
            for (unsigned i = 0; i < WARPS; ++i) {
                const uint32_t count = next[i][bin];
                next[i][bin] = place;
                place += count;
            }
            if (blockIdx.x == 0) {
                groups[bin] = begin;
                tiles[bin] = tile;
            }
        }
        begin += own[j];
        tile += uint32_t((own[j] + rows - 1) / rows);
    }
    __syncthreads();

    for (unsigned turn = 0; turn < TURNS; ++turn) {
        const size_t i = first + turn * WARP;
        const bool there = i < n;
        const uint32_t bin = there ? bin_of(indices[i], e) : MAX_BINS;
        const unsigned same = __match_any_sync(WHOLE_WARP, bin);
        const unsigned below = unsigned(__popc(same & ((1u << lane) - 1)));
        const uint32_t place = there ? next[warp][bin] : 0;
        __syncwarp();
        if (there) {
            slots[place + below] = uint32_t(i);
            if (below == 0) {
                next[warp][bin] = place + unsigned(__popc(same));
            }
        }
        __syncwarp();
    }
}
EXPORT(moe_sort_scatter_u32)
