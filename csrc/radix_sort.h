// Sorting keys by the bits in which they differ.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace pcssl {

template <typename Key>
struct KeyRow {
  Key key;
  int32_t row;
};

// The pairs {keys[i], i} by ascending key, equal keys by ascending row. Keys must not be negative.
// pairs, spare: room for n pairs each. Returns the one of the two that holds the result.
//
// Only bits in which keys differ are sorted by, in runs that are shorter for many pairs: then the
// places that a pass writes to must stay in the cache, and for few all of the pairs do.
template <typename Key>
KeyRow<Key>* sort_by_key(const Key* keys, int64_t n, KeyRow<Key>* pairs, KeyRow<Key>* spare) {
  const int most = n > (1 << 17) ? 10 : 13;
  using Bits = std::make_unsigned_t<Key>;
  Bits differ = 0;
  for (int64_t i = 1; i < n; ++i) differ |= static_cast<Bits>(keys[i] ^ keys[0]);
  const int in_use = std::popcount(differ), passes = (in_use + most - 1) / most;
  const int longest = passes ? (in_use + passes - 1) / passes : 0;
  std::vector<int32_t> start(int64_t{1} << longest);
  bool sorted = false;  // by the bits so far: pairs are filled
  while (differ) {
    const int shift = std::countr_zero(differ);
    // The highest bit that is in use within reach of this run ends it.
    const Bits mask = std::bit_ceil(static_cast<Bits>((differ >> shift & ((Bits{1} << longest) - 1)) + 1)) - 1;
    std::fill_n(start.begin(), mask + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++start[keys[i] >> shift & mask];
    int32_t sum = 0;
    for (Bits d = 0; d <= mask; ++d) sum += std::exchange(start[d], sum);
    if (sorted) {
      for (int64_t i = 0; i < n; ++i) spare[start[pairs[i].key >> shift & mask]++] = pairs[i];
      std::swap(pairs, spare);
    } else {
      for (int64_t i = 0; i < n; ++i) pairs[start[keys[i] >> shift & mask]++] = {keys[i], static_cast<int32_t>(i)};
      sorted = true;
    }
    differ &= ~(mask << shift);
  }
  if (!sorted)
    for (int64_t i = 0; i < n; ++i) pairs[i] = {keys[i], static_cast<int32_t>(i)};
  return pairs;
}

}  // namespace pcssl
