// Sorting (key, row) pairs by the bits of the key that differ.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace pcssl {

struct KeyRow {
  int64_t key;
  int32_t row;
};

// Sorts pairs[0..n) by key, equal keys in the order they had. Keys must not be negative.
// spare: room for n pairs. Returns the one of the two arrays that holds the result.
//
// Only bits in which keys differ are sorted by, in runs: the bits of a room's voxel keys that
// differ lie in four groups with gaps between them.
inline KeyRow* sort_by_key(KeyRow* pairs, KeyRow* spare, int64_t n) {
  constexpr int kDigit = 11;
  uint64_t differ = 0;
  for (int64_t i = 1; i < n; ++i) differ |= static_cast<uint64_t>(pairs[i].key ^ pairs[0].key);
  std::vector<int64_t> start(1 << kDigit);
  while (differ) {
    const int shift = __builtin_ctzll(differ);
    // The highest bit that is in use within reach of this digit ends it.
    const uint64_t used = (differ >> shift) & ((1 << kDigit) - 1);
    const int bits = 64 - __builtin_clzll(used);
    const int64_t mask = (int64_t{1} << bits) - 1;
    std::fill_n(start.begin(), mask + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++start[(pairs[i].key >> shift) & mask];
    int64_t sum = 0;
    for (int64_t d = 0; d <= mask; ++d) sum += std::exchange(start[d], sum);
    for (int64_t i = 0; i < n; ++i) spare[start[(pairs[i].key >> shift) & mask]++] = pairs[i];
    std::swap(pairs, spare);
    differ &= ~(static_cast<uint64_t>(mask) << shift);
  }
  return pairs;
}

}  // namespace pcssl
