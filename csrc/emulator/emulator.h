// CUDA's execution model on the CPU, for tests of kernels where there is no GPU.
//
// Every thread of a block is a fibre; fibres run one at a time until they wait at a barrier or take part in an
// operation of the warp. The order in which they run is shuffled between waits, so that a missing barrier shows.
// Nothing here is fast. Memory models, alignment faults and the number of registers are not emulated.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static  // blocks run one after another
#define __constant__ static

namespace emulator {

// Runs kernel once for every thread of the grid.
void launch(dim3 grid, dim3 block, size_t dynamic_bytes, const std::function<void()>& kernel);

unsigned char* dynamic_shared();
void block_barrier();
int lane();
[[noreturn]] void fail(const char* what);

// What the kernels' host code asks of the device.
struct Device {
  int shared_per_block = 227 << 10, shared_per_processor = 228 << 10, processors = 132;
};
extern Device device;

// Every lane named by `mask` gives `bytes` (at most 256) and sees those of all lanes, one after another, 256 bytes
// apart, until `release`.
const unsigned char* share(unsigned mask, const void* value, size_t bytes);
void release(unsigned mask);

// The work of a whole warp, done by its last lane to arrive; lanes[i] is what lane i gave.
void together(void* mine, void (*work)(void* const* lanes));
extern int64_t matrix_loads, matrix_conflicts;  // turns that matrix loads took, and those for conflicts of banks

// Asynchronous copies happen when they are waited for, so that a missing wait shows.
void copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void wait_copies(int groups_left);

template <typename T>
T from_lane(unsigned mask, T value, int from) {
  const unsigned char* all = share(mask, &value, sizeof(T));
  T result;
  std::memcpy(&result, all + 256 * (from & 31), sizeof(T));
  release(mask);
  return result;
}

}  // namespace emulator

#define PCSSL_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...) \
  ((void)(stream), emulator::launch(grid, block, dynamic_bytes, [=] { kernel(__VA_ARGS__); }))
#define PCSSL_DYNAMIC_SHARED(name) unsigned char* const name = emulator::dynamic_shared()
#define PCSSL_ALLOW_SHARED(kernel, bytes) (void)(bytes)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned mask = ~0u) {
  emulator::share(mask, nullptr, 0);
  emulator::release(mask);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int lane = emulator::lane();
  return emulator::from_lane(mask, value, lane / width * width + (from & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int = 32) {
  return emulator::from_lane(mask, value, emulator::lane() ^ bits);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = emulator::lane();
  return emulator::from_lane(mask, value, lane % width >= static_cast<int>(by) ? lane - by : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = emulator::lane();
  return emulator::from_lane(mask, value, lane % width + static_cast<int>(by) < width ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  const unsigned char* all = emulator::share(mask, &vote, sizeof(vote));
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= static_cast<unsigned>(all[256 * lane] != 0) << lane;
  emulator::release(mask);
  return votes;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) == mask; }
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  const unsigned char* all = emulator::share(mask, &value, sizeof(value));
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) {
      unsigned one;
      std::memcpy(&one, all + 256 * lane, sizeof(one));
      result |= one;
    }
  emulator::release(mask);
  return result;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
template <typename T>
T __ldg(const T* x) { return *x; }
inline int __float_as_int(float x) { int i; std::memcpy(&i, &x, 4); return i; }
inline float __int_as_float(int i) { float x; std::memcpy(&x, &i, 4); return x; }
inline unsigned __float_as_uint(float x) { unsigned i; std::memcpy(&i, &x, 4); return i; }
inline float __uint_as_float(unsigned i) { float x; std::memcpy(&x, &i, 4); return x; }
using std::max;
using std::min;

template <typename T>
T atomicAdd(T* at, T value) { return std::exchange(*at, static_cast<T>(*at + value)); }
template <typename T>
T atomicMax(T* at, T value) { return std::exchange(*at, std::max(*at, value)); }
template <typename T>
T atomicMin(T* at, T value) { return std::exchange(*at, std::min(*at, value)); }
template <typename T>
T atomicOr(T* at, T value) { return std::exchange(*at, *at | value); }
template <typename T>
T atomicExch(T* at, T value) { return std::exchange(*at, value); }
template <typename T>
T atomicCAS(T* at, T expected, T value) {
  const T before = *at;
  if (before == expected) *at = value;
  return before;
}

namespace pcssl {

struct bf16 { uint16_t bits; };
struct fp16 { _Float16 value; };

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
inline float to_float(fp16 x) { return static_cast<float>(x.value); }

// To the nearest, ties to even.
template <typename T>
T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    const unsigned bits = __float_as_uint(x);
    if (std::isnan(x)) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else {
    return {static_cast<_Float16>(x)};
  }
}

}  // namespace pcssl
