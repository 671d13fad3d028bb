// Sum, mean and maximum over runs of rows.
#include <algorithm>
#include <cmath>

#include "tensors.h"

namespace pcssl {
namespace {

enum Reduction { kSum, kMean, kMax };

struct Segments {
  const int64_t* offsets;
  int64_t count, channels;
};

Segments check(const Tensor& values, const Tensor& offsets, int64_t reduction) {
  STD_TORCH_CHECK(reduction >= kSum && reduction <= kMax, "unknown reduction");
  const int64_t* at = read<int64_t>(offsets, 1, "offsets");
  const int64_t count = offsets.size(0) - 1;
  STD_TORCH_CHECK(count >= 0 && at[0] == 0 && at[count] == values.size(0) && std::is_sorted(at, at + count + 1),
                  "offsets must rise from 0 to the number of rows");
  return {at, count, values.size(1)};
}

Tensor segment_reduce(Tensor values, Tensor offsets, int64_t reduction) {
  const float* from = read<float>(values, 2, "values");
  const Segments s = check(values, offsets, reduction);
  Tensor result = make<float>(values, {s.count, s.channels});
  float* out = write<float>(result);
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t i = 0; i < s.count; ++i) {
    const int64_t first = s.offsets[i], last = s.offsets[i + 1];
    float* to = out + i * s.channels;
    if (first == last) {
      std::fill_n(to, s.channels, 0.0f);
      continue;
    }
    std::copy_n(from + first * s.channels, s.channels, to);
    for (int64_t row = first + 1; row < last; ++row) {
      const float* x = from + row * s.channels;
      if (reduction == kMax)
        for (int64_t c = 0; c < s.channels; ++c) to[c] = x[c] > to[c] || std::isnan(x[c]) ? x[c] : to[c];
      else
        for (int64_t c = 0; c < s.channels; ++c) to[c] += x[c];
    }
    if (reduction == kMean)
      for (int64_t c = 0; c < s.channels; ++c) to[c] /= static_cast<float>(last - first);
  }
  return result;
}

// values and out: input and result of the reduction; only the maximum looks at them. Rows that
// share a maximum share its gradient.
Tensor segment_reduce_grad(Tensor grad, Tensor values, Tensor out, Tensor offsets, int64_t reduction) {
  const float* from = read<float>(grad, 2, "grad");
  const float* x = read<float>(values, 2, "values", reduction != kMax);
  const float* highest = read<float>(out, 2, "out", reduction != kMax);
  const Segments s = check(values, offsets, reduction);
  STD_TORCH_CHECK(grad.size(0) == s.count && grad.size(1) == s.channels && out.size(0) == s.count &&
                      out.size(1) == s.channels, "grad and out must have a row for each segment");
  Tensor result = make<float>(values, {values.size(0), s.channels});
  float* to = write<float>(result);
#pragma omp parallel num_threads(threads())
  {
    const Scratch<float> share(s.channels);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.count; ++i) {
      const int64_t first = s.offsets[i], last = s.offsets[i + 1];
      const float *top = highest + i * s.channels, *g = from + i * s.channels;
      if (reduction == kMax) {
        std::fill_n(share.get(), s.channels, 0.0f);
        for (int64_t row = first; row < last; ++row)
          for (int64_t c = 0; c < s.channels; ++c) share[c] += x[row * s.channels + c] == top[c];
      } else {
        std::fill_n(share.get(), s.channels, reduction == kMean ? static_cast<float>(last - first) : 1.0f);
      }
      for (int64_t c = 0; c < s.channels; ++c) share[c] = g[c] / share[c];
      for (int64_t row = first; row < last; ++row)
        for (int64_t c = 0; c < s.channels; ++c) {
          const int64_t at = row * s.channels + c;
          to[at] = reduction != kMax || x[at] == top[c] ? share[c] : 0.0f;
        }
    }
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("segment_reduce", TORCH_BOX(&segment_reduce));
  m.impl("segment_reduce_grad", TORCH_BOX(&segment_reduce_grad));
}

}  // namespace pcssl
