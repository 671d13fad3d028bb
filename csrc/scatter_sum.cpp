// Sums of rows that share an index.
#include <algorithm>

#include "tensors.h"

namespace pcssl {
namespace {

// kChannels: their number, 0 for any.
template <int kChannels>
void add(const float* from, const int64_t* index, int64_t rows, int64_t channels, float* to) {
  const int64_t count = kChannels ? kChannels : channels;
  for (int64_t i = 0; i < rows; ++i) {
    float* sum = to + index[i] * count;
    for (int64_t c = 0; c < count; ++c) sum[c] += from[i * count + c];
  }
}

// values (N, C), index (N,) in 0 .. size - 1: (size, C), rows added in their order.
Tensor scatter_sum(Tensor values, Tensor index, int64_t size) {
  const float* from = read<float>(values, 2, "values");
  const int64_t* at = read<int64_t>(index, 1, "index");
  const int64_t rows = values.size(0), channels = values.size(1);
  STD_TORCH_CHECK(index.size(0) == rows && size >= 0, "values must have an index each, size must not be negative");
  bool inside = true;
  for (int64_t i = 0; i < rows; ++i) inside &= static_cast<uint64_t>(at[i]) < static_cast<uint64_t>(size);
  STD_TORCH_CHECK(inside, "index must be within 0 and ", size - 1);
  Tensor result = make<float>(values, {size, channels});
  float* to = write<float>(result);
  std::fill_n(to, size * channels, 0.0f);
  // What a scene's points have: place, colour and normal.
  (channels == 3 ? add<3> : channels == 4 ? add<4> : channels == 9 ? add<9> : add<0>)(from, at, rows, channels, to);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) { m.impl("scatter_sum", TORCH_BOX(&scatter_sum)); }

}  // namespace pcssl
