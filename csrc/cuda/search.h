// Binary search in sorted arrays, by single threads.
#pragma once

#include "../keys.h"
#include "device.h"

namespace pcssl {

// Position of the first of `count` ascending keys that is not below `key`; `count` if all are.
template <typename T>
__device__ __forceinline__ int64_t first_not_below(const T* __restrict__ keys, int64_t count, T key) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t half = count >> 1;
    const bool below = keys[low + half] < key;
    low = below ? low + half + 1 : low;
    count = below ? count - half - 1 : half;
  }
  return low;
}

__device__ __forceinline__ bool is_scene(int64_t batch) { return batch >= 0 && batch <= kMaxBatch; }

}  // namespace pcssl
