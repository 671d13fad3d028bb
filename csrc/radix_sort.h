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

// pairs: {keys[i], first_row + i} by ascending key, equal keys by ascending row. Keys must not be
// negative. spare: room for n pairs on the way.
//
// Only bits in which keys differ are sorted by, in runs that are shorter for many pairs: then the
// places that a pass writes to must stay in the cache, and for few all of the pairs do.
template <typename Key>
void sort_by_key(const Key* keys, int64_t n, int64_t first_row, KeyRow<Key>* pairs, KeyRow<Key>* spare) {
  using Bits = std::make_unsigned_t<Key>;
  Bits differ = 0;
  for (int64_t i = 1; i < n; ++i) differ |= static_cast<Bits>(keys[i] ^ keys[0]);
  const int most = n > (1 << 19) ? 10 : 14, in_use = std::popcount(differ), passes = (in_use + most - 1) / most;
  const int longest = passes ? (in_use + passes - 1) / passes : 0;
  struct Run {
    int shift;
    Bits mask;
  };
  std::vector<Run> runs;
  while (differ) {
    const int shift = std::countr_zero(differ);
    // The highest bit that is in use within reach of this run ends it.
    const Bits mask = std::bit_ceil(static_cast<Bits>((differ >> shift & ((Bits{1} << longest) - 1)) + 1)) - 1;
    runs.push_back({shift, mask});
    differ &= ~(mask << shift);
  }
  if (runs.empty()) runs.push_back({0, 0});

  std::vector<int32_t> start(int64_t{1} << longest);
  KeyRow<Key>*from = nullptr, *to = runs.size() % 2 ? pairs : spare;  // so that the last one writes to pairs
  for (const auto [shift, mask] : runs) {
    std::fill_n(start.begin(), mask + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++start[keys[i] >> shift & mask];
    int32_t sum = 0;
    for (Bits d = 0; d <= mask; ++d) sum += std::exchange(start[d], sum);
    if (from)
      for (int64_t i = 0; i < n; ++i) to[start[from[i].key >> shift & mask]++] = from[i];
    else
      for (int64_t i = 0; i < n; ++i)
        to[start[keys[i] >> shift & mask]++] = {keys[i], static_cast<int32_t>(first_row + i)};
    from = to;
    to = from == pairs ? spare : pairs;
  }
}

}  // namespace pcssl
