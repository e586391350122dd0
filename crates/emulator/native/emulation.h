// The part of CUDA's language that kernels use, for g++.
//
// Every CUDA thread of a block is a fiber with its own stack. It runs until it waits for others (a
// barrier, a warp collective) or ends; so between two such points a thread runs alone, and the
// order in which threads get their turn is the launch's. Blocks run one after another.
// emulation.cpp runs them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

// A place in the source.
struct Site {
    const char *file;
    int line;
    bool operator==(const Site &other) const { return line == other.line && !std::strcmp(file, other.file); }
};

enum class Collective : int { shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, match, sync, joint };

struct Thread {
    uint3 index;
    uint3 block;
};

extern Thread *current;
extern dim3 grid, block;

// Waits until every thread of the block waits here.
void barrier(Site site);
// Waits until the lanes of `mask` wait at the same place, and gives what the collective gives this
// lane. `operand` is the source lane, the distance, or the mask of a shuffle.
uint64_t together(Collective kind, unsigned mask, uint64_t value, int operand, int width, Site site);
// Waits until every thread of the block waits here; the number of those with `predicate`.
int barrier_count(bool predicate, Site site);
void *dynamic_shared();

// What a warp does with the registers of all its lanes.
using Joint = void (*)(void *const *lanes);
// Waits until all 32 lanes of the warp are here, each with what is its own; `body` is then called
// once, with those of all lanes.
void jointly(Joint body, void *own, Site site);

// Eight rows of 16 bytes in shared memory for each of four matrices (ldmatrix .x4).
void load_matrices(uint32_t (&registers)[4], const void *row, bool transposed, Site site);

// 16 bytes to shared memory (cp.async): forward they are there at once, in the other orders not
// before the thread waits for them, which are the first and the last moment that the device may
// choose.
void copy_async(void *to, const void *from, bool there);
void commit();
void wait(unsigned n_pending);

template <typename T> T shuffled(Collective kind, unsigned mask, T value, int operand, int width, Site site) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "4 or 8 bytes, as on the device");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = together(kind, mask, bits, operand, width, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// An entry point under its name, with the sizes of its parameters.
struct Export {
    static constexpr int MAX_PARAMETERS = 32;
    using Call = void (*)(void (*)(), const unsigned char *const *);

    template <typename... A> Export(const char *name, void (*entry)(A...));

    const char *name;
    void (*entry)();
    Call call;
    int count;
    size_t sizes[MAX_PARAMETERS];
    const Export *next;
    static const Export *first;
};

template <typename T> T parameter(const unsigned char *bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

template <typename... A, size_t... I>
void call_with(void (*entry)(A...), const unsigned char *const *arguments, std::index_sequence<I...>) {
    entry(parameter<A>(arguments[I])...);
}

template <typename... A>
Export::Export(const char *name, void (*entry)(A...))
    : name(name), entry(reinterpret_cast<void (*)()>(entry)),
      call([](void (*entry)(), const unsigned char *const *arguments) {
          call_with(reinterpret_cast<void (*)(A...)>(entry), arguments, std::index_sequence_for<A...>());
      }),
      count(sizeof...(A)), sizes{sizeof(A)...}, next(first) {
    static_assert(sizeof...(A) > 0 && sizeof...(A) <= MAX_PARAMETERS, "between 1 and 32 parameters");
    first = this;
}

} // namespace emulation

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __constant__ static const
#define __shared__ static
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::current->block)
#define blockDim (emulation::block)
#define gridDim (emulation::grid)
constexpr int warpSize = 32;

#define EMULATION_SITE (emulation::Site{__FILE__, __LINE__})

#define __syncthreads() emulation::barrier(EMULATION_SITE)
#define __syncthreads_count(p) emulation::barrier_count((p) != 0, EMULATION_SITE)
#define __syncthreads_or(p) (emulation::barrier_count((p) != 0, EMULATION_SITE) != 0)
#define __syncthreads_and(p) (emulation::barrier_count((p) == 0, EMULATION_SITE) == 0)
#define __syncwarp emulation::SyncWarp{EMULATION_SITE}
#define __shfl_sync(...) emulation::shuffle<emulation::Collective::shuffle>(EMULATION_SITE, __VA_ARGS__)
#define __shfl_up_sync(...) emulation::shuffle<emulation::Collective::shuffle_up>(EMULATION_SITE, __VA_ARGS__)
#define __shfl_down_sync(...) emulation::shuffle<emulation::Collective::shuffle_down>(EMULATION_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...) emulation::shuffle<emulation::Collective::shuffle_xor>(EMULATION_SITE, __VA_ARGS__)
#define __ballot_sync(mask, p) emulation::ballot(EMULATION_SITE, mask, p)
#define __any_sync(mask, p) (emulation::ballot(EMULATION_SITE, mask, p) != 0)
#define __all_sync(mask, p) (emulation::ballot(EMULATION_SITE, mask, !(p)) == 0)
#define __match_any_sync(mask, value) emulation::match_any(EMULATION_SITE, mask, value)

namespace emulation {

struct SyncWarp {
    Site site;
    void operator()(unsigned mask = 0xffffffffu) const { together(Collective::sync, mask, 0, 0, 32, site); }
};

template <Collective kind, typename T>
T shuffle(Site site, unsigned mask, T value, int operand, int width = 32) {
    return shuffled(kind, mask, value, operand, width, site);
}

inline unsigned ballot(Site site, unsigned mask, bool predicate) {
    return unsigned(together(Collective::ballot, mask, predicate, 0, 32, site));
}

template <typename T> unsigned match_any(Site site, unsigned mask, T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes, as on the device");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return unsigned(together(Collective::match, mask, bits, 0, 32, site));
}

} // namespace emulation

// A thread runs alone between two points of waiting, so these are atomic as they stand.
template <typename T, typename U> T atomicAdd(T *at, U value) { T old = *at; *at = T(old + T(value)); return old; }
template <typename T, typename U> T atomicSub(T *at, U value) { T old = *at; *at = T(old - T(value)); return old; }
template <typename T, typename U> T atomicMax(T *at, U value) { T old = *at; if (T(value) > old) *at = T(value); return old; }
template <typename T, typename U> T atomicMin(T *at, U value) { T old = *at; if (T(value) < old) *at = T(value); return old; }
template <typename T, typename U> T atomicAnd(T *at, U value) { T old = *at; *at = T(old & T(value)); return old; }
template <typename T, typename U> T atomicOr(T *at, U value) { T old = *at; *at = T(old | T(value)); return old; }
template <typename T, typename U> T atomicXor(T *at, U value) { T old = *at; *at = T(old ^ T(value)); return old; }
template <typename T, typename U> T atomicExch(T *at, U value) { T old = *at; *at = T(value); return old; }
template <typename T, typename U, typename V> T atomicCAS(T *at, U compare, V value) {
    T old = *at;
    if (old == T(compare)) *at = T(value);
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Half precision and bfloat16: storage, and conversions to the nearest, ties to even.
struct alignas(2) __half {
    uint16_t bits;
};

struct alignas(2) __nv_bfloat16 {
    uint16_t bits;
};

inline uint32_t __float_as_uint(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int bits) { return __uint_as_float(uint32_t(bits)); }
inline uint16_t __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits = __float_as_uint(x);
    if (x != x) {
        return {0x7fff};
    }
    bits += 0x7fff + (bits >> 16 & 1);
    return {uint16_t(bits >> 16)};
}

inline float __half2float(__half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
    const uint32_t exponent = x.bits >> 10 & 31, mantissa = x.bits & 0x3ff;
    if (exponent == 31) {
        return __uint_as_float(sign | 0x7f800000 | mantissa << 13);
    }
    if (exponent == 0) {
        const float small = float(mantissa) * 0x1p-24f;
        return __uint_as_float(sign | __float_as_uint(small));
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline __half __float2half_rn(float x) {
    const uint32_t bits = __float_as_uint(x);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return {0x7fff};
    }
    // 65520 and above is nearer to infinity.
    if (magnitude >= 0x477ff000) {
        return {uint16_t(sign | 0x7c00)};
    }
    if (magnitude < 0x38800000) {
        // Adding 0.5 puts the units of the last place of a subnormal at those of the sum.
        const float sum = __uint_as_float(magnitude) + 0.5f;
        return {uint16_t(sign | (__float_as_uint(sum) - 0x3f000000))};
    }
    const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
    return {uint16_t(sign | rounded >> 13)};
}

inline __half __float2half(float x) { return __float2half_rn(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }

namespace emulation {

inline float number_of(__half x) { return __half2float(x); }
inline float number_of(__nv_bfloat16 x) { return __bfloat162float(x); }

// A lane's registers of a product of a 16 x 16 and a 16 x 8 matrix (mma .m16n8k16).
struct Factors {
    float *d;
    const uint32_t *a, *b;
};

template <typename T> void multiply_lanes(void *const *lanes) {
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Factors &own = *static_cast<const Factors *>(lanes[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; ++i) {
            for (int high = 0; high < 2; ++high) {
                const T number = {uint16_t(own.a[i] >> 16 * high)};
                a[group + i % 2 * 8][pair + i / 2 * 8 + high] = number_of(number);
            }
        }
        for (int i = 0; i < 2; ++i) {
            for (int high = 0; high < 2; ++high) {
                const T number = {uint16_t(own.b[i] >> 16 * high)};
                b[pair + i * 8 + high][group] = number_of(number);
            }
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        const Factors &own = *static_cast<const Factors *>(lanes[lane]);
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = own.d[i];
            for (int k = 0; k < 16; ++k) {
                sum += a[row][k] * b[k][column];
            }
            own.d[i] = float(sum);
        }
    }
}

template <typename T> void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
    Factors own{d, a, b};
    jointly(multiply_lanes<T>, &own, site);
}

} // namespace emulation

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
template <typename T> T __ldg(const T *from) { return *from; }
template <typename T> T min(T a, T b) { return b < a ? b : a; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) int2 { int x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
