// What the kernels of the convolution share: how numbers are stored and multiplied, the size of tiles, and how many
// stages of copies fit into shared memory.
#pragma once

#include "mma.h"

namespace pcssl {

constexpr int kPiece = 16;         // bytes of one asynchronous copy
constexpr int kConvThreads = 128;  // of a block: 4 warps

// What a float is multiplied as where nothing may be rounded: on the CUDA cores.
struct exact {};

// What a number is in memory.
template <typename T>
using Stored = std::conditional_t<std::is_same_v<T, exact> || std::is_same_v<T, tf32>, float, T>;

// Two neighbouring numbers, written at once.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};

template <typename T>
__device__ __forceinline__ void store_pair(T* at, float x, float y, bool has_y, bool together) {
  if (together) {
    *reinterpret_cast<Pair<T>*>(at) = {from_float<T>(x), from_float<T>(y)};
  } else {
    at[0] = from_float<T>(x);
    if (has_y) at[1] = from_float<T>(y);
  }
}

// A warp's sums on the tensor cores: M by N of them, in the fragments of mma.h.
template <typename T, int M, int N>
struct WarpSums {
  static constexpr int kRows = M / 8, kPairs = N / 8;  // a lane has `pair(i, j)` at `row(i)` and `column(j)`

  __device__ __forceinline__ static int row(int i) { return 8 * i + threadIdx.x % 32 / 4; }
  __device__ __forceinline__ static int column(int j) { return 8 * j + threadIdx.x % 4 * 2; }
  __device__ __forceinline__ const float* pair(int i, int j) const { return sums[i / 2][j] + 2 * (i % 2); }

  __device__ __forceinline__ void add(const uint32_t (&a)[M / 16][4], const uint32_t (&b)[N / 16][4]) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i)
#pragma unroll
      for (int j = 0; j < N / 8; ++j) multiply_add(T{}, sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
  }

  float sums[M / 16][N / 8][4] = {};
};

// Size of the tiles that so many channels are cut into: wide tiles gather rows less often, narrow ones have fewer idle
// channels. A tile costs about as much as 64 channels more.
inline int tile_channels(int channels) {
  int best = 32, lowest = INT32_MAX;
  for (int size : {128, 96, 64, 32}) {
    const int cost = (channels + size - 1) / size * (size + 64);
    if (cost < lowest) {
      best = size;
      lowest = cost;
    }
  }
  return best;
}

#ifdef PCSSL_EMULATE
using emulator::Device;
inline Device current_device() { return emulator::device; }
#else
struct Device {
  int shared_per_block, shared_per_processor, processors;  // bytes of shared memory, multiprocessors
};

inline Device current_device() {
  int id = 0;
  Device device{48 << 10, 48 << 10, 1};
  cudaGetDevice(&id);
  cudaDeviceGetAttribute(&device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  cudaDeviceGetAttribute(&device.shared_per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, id);
  cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, id);
  return device;
}
#endif

// Stages of copies in flight, 2 to 4: as many as leave room for `blocks` blocks on a multiprocessor, or for fewer
// blocks where two stages do not.
inline int stages_for(const Device& device, int blocks, int stage_bytes, int other_bytes) {
  constexpr int kReserved = 1 << 10;  // what the system takes of every block's
  for (; blocks > 0; --blocks) {
    const int share = device.shared_per_processor / blocks - kReserved;
    const int room = (share < device.shared_per_block ? share : device.shared_per_block) - other_bytes;
    if (room >= 2 * stage_bytes) return room / stage_bytes < 4 ? room / stage_bytes : 4;
  }
  return 2;
}

}  // namespace pcssl
