// Voxel coordinates packed into one sortable 64-bit key, as pcssl.ops.keys does.
#pragma once

#include <cstdint>

namespace pcssl {

constexpr int kAxisBits = 17;
constexpr int64_t kLowest = -(int64_t{1} << (kAxisBits - 1)), kHighest = -kLowest - 1;
constexpr int64_t kMaxBatch = (1 << 12) - 1;

constexpr int64_t pack_key(int64_t batch, int64_t x, int64_t y, int64_t z) {
  return (((((batch << kAxisBits) + (x - kLowest)) << kAxisBits) + (y - kLowest)) << kAxisBits) + (z - kLowest);
}

// What adding (x, y, z) to a voxel adds to its key, as long as no axis leaves its range.
constexpr int64_t key_step(int64_t x, int64_t y, int64_t z) { return (((x << kAxisBits) + y) << kAxisBits) + z; }

constexpr bool in_range(int64_t axis) { return axis >= kLowest && axis <= kHighest; }

}  // namespace pcssl
