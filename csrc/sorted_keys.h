// Keys of voxels in ascending order.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "keys.h"
#include "radix_sort.h"
#include "tensors.h"

namespace pcssl {

// Lowest and highest [batch, x, y, z].
struct Bounds {
  int64_t low[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
  int64_t high[4] = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};

  void add(const Bounds& other) {
    for (int a = 0; a < 4; ++a) {
      low[a] = std::min(low[a], other.low[a]);
      high[a] = std::max(high[a], other.high[a]);
    }
  }
};

// Keys of [batch, floor(xyz / edge)] of points (count, 3); point i is of scene batch[i * step].
// Adds to the bounds; returns whether all points are finite. Keys mean nothing where the bounds
// leave the range.
inline bool key_points(const float* xyz, const int64_t* batch, int64_t step, int64_t count, float edge, int64_t* keys,
                       Bounds& bounds) {
  const Kernels& cpu = kernels();
  const int runs = threads();
  bool finite = true;
#pragma omp parallel for num_threads(runs) schedule(static)
  for (int run = 0; run < runs; ++run) {
    const int64_t first = cut(count, runs, run), size = cut(count, runs, run + 1) - first;
    Bounds mine;
    const bool all_finite =
        cpu.voxel_keys(xyz + 3 * first, batch + first * step, step, size, edge, keys + first, mine.low, mine.high);
#pragma omp critical(pcssl_key_points)
    {
      bounds.add(mine);
      finite = finite && all_finite;
    }
  }
  return finite;
}

inline ShortKeys how_to_shorten(const int64_t* keys, int64_t count) {
  ShortKeys how;
  if (count == 0) return how;
  Bounds bounds;
  kernels().key_bounds(keys, count, bounds.low, bounds.high);
  const auto [b, x, y, z] = bounds.low;
  how.corner = pack_key(b, x + kLowest, y + kLowest, z + kLowest);
  for (int a = 3; a >= 0; --a) {
    const int width = std::bit_width(static_cast<uint64_t>(bounds.high[a] - bounds.low[a]));
    how.shift[a] = (3 - a) * kAxisBits - how.bits;
    how.mask[a] = ((uint64_t{1} << width) - 1) << how.bits;
    how.bits += width;
  }
  return how;
}

// Where scenes begin among keys that come scene after scene, and the end; one run of all keys if
// they do not.
inline std::vector<int64_t> scene_runs(const int64_t* keys, int64_t count) {
  std::vector<int64_t> runs{0};
  for (int64_t i = 1; i < count; ++i) {
    const int64_t step = (keys[i] >> (3 * kAxisBits)) - (keys[i - 1] >> (3 * kAxisBits));
    if (step < 0) return {0, count};
    if (step > 0) runs.push_back(i);
  }
  runs.push_back(count);
  return runs;
}

// Shortened keys with their rows in ascending order. Short: uint32_t where that is enough bits.
template <typename Short>
class SortedKeys {
 public:
  SortedKeys(const int64_t* keys, int64_t count, const ShortKeys& how) : short_(count), pairs_(count) {
    if constexpr (sizeof(Short) == 4)
      kernels().shorten(keys, count, how, short_.get());
    else
      for (int64_t i = 0; i < count; ++i) short_[i] = short_key(keys[i], how);
    const std::vector<int64_t> runs = how.mask[0] ? scene_runs(keys, count) : std::vector<int64_t>{0, count};
    int64_t longest = 0;
    for (size_t run = 1; run < runs.size(); ++run) longest = std::max(longest, runs[run] - runs[run - 1]);
    const Scratch<KeyRow<Short>> spare(longest);
    for (size_t run = 1; run < runs.size(); ++run) {
      const int64_t first = runs[run - 1];
      sort_by_key(short_.get() + first, runs[run] - first, first, pairs_.get() + first, spare.get());
    }
  }

  const KeyRow<Short>& operator[](int64_t i) const { return pairs_[i]; }

  // Room for a key each, whatever for.
  Short* room() const { return short_.get(); }

 private:
  const Scratch<Short> short_;
  const Scratch<KeyRow<Short>> pairs_;
};

}  // namespace pcssl
