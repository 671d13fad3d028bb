// Voxel coordinates packed into one sortable 64-bit key, as pcssl.ops.keys does.
//
// Functions are static: kernels for one instruction set include this too (see cpu/kernels_impl.h).
#pragma once

#include <stdint.h>

namespace pcssl {

constexpr int kAxisBits = 17;
constexpr int64_t kLowest = -(int64_t{1} << (kAxisBits - 1)), kHighest = -kLowest - 1;
constexpr int64_t kAxisMask = (int64_t{1} << kAxisBits) - 1;
constexpr int64_t kMaxBatch = (1 << 12) - 1;

// Means nothing, but does no harm, where a coordinate is out of range.
static constexpr int64_t pack_key(int64_t batch, int64_t x, int64_t y, int64_t z) {
  const uint64_t high = (static_cast<uint64_t>(batch) << kAxisBits) + static_cast<uint64_t>(x - kLowest);
  const uint64_t middle = (high << kAxisBits) + static_cast<uint64_t>(y - kLowest);
  return static_cast<int64_t>((middle << kAxisBits) + static_cast<uint64_t>(z - kLowest));
}

static constexpr void unpack_key(int64_t key, int32_t* voxel) {
  voxel[0] = static_cast<int32_t>(key >> (3 * kAxisBits));
  voxel[1] = static_cast<int32_t>((key >> (2 * kAxisBits) & kAxisMask) + kLowest);
  voxel[2] = static_cast<int32_t>((key >> kAxisBits & kAxisMask) + kLowest);
  voxel[3] = static_cast<int32_t>((key & kAxisMask) + kLowest);
}

// What adding (x, y, z) to a voxel adds to its key, as long as no axis leaves its range.
static constexpr int64_t key_step(int64_t x, int64_t y, int64_t z) { return (((x << kAxisBits) + y) << kAxisBits) + z; }

static constexpr bool in_range(int64_t axis) { return axis >= kLowest && axis <= kHighest; }

// How a set of keys is shortened to the bits in which they differ, keeping their order: the
// lowest value of each axis becomes 0 and the bits above its highest value are left out.
struct ShortKeys {
  int64_t corner = 0;     // the key of the lowest values
  int shift[4] = {};      // how far the bits of [batch, x, y, z] move down
  uint64_t mask[4] = {};  // where they are then
  int bits = 0;
};

static constexpr uint64_t short_key(int64_t key, const ShortKeys& s) {
  const uint64_t d = static_cast<uint64_t>(key - s.corner);
  return (d >> s.shift[0] & s.mask[0]) | (d >> s.shift[1] & s.mask[1]) | (d >> s.shift[2] & s.mask[2]) | (d & s.mask[3]);
}

static constexpr int64_t full_key(uint64_t k, const ShortKeys& s) {
  return s.corner + static_cast<int64_t>((k & s.mask[0]) << s.shift[0] | (k & s.mask[1]) << s.shift[1] |
                                         (k & s.mask[2]) << s.shift[2] | (k & s.mask[3]));
}

}  // namespace pcssl
