// Sum, mean and maximum over runs of rows.
#include "cpu/kernels.h"
#include "tensors.h"

namespace pcssl {
namespace {

constexpr int64_t kLarge = 16 << 20;  // bytes

// All segments of `rows` rows.
Segments check(const Tensor& offsets, int64_t rows, int64_t channels, int64_t reduction) {
  STD_TORCH_CHECK(reduction >= kSum && reduction <= kMax, "unknown reduction");
  const int64_t* at = read<int64_t>(offsets, 1, "offsets");
  const int64_t count = offsets.size(0) - 1;
  STD_TORCH_CHECK(count >= 0 && at[0] == 0 && at[count] == rows && kernels().rising(at, count + 1),
                  "offsets must rise from 0 to the number of rows");
  return {at, 0, count, channels, 4 * rows * channels >= kLarge};
}

// Calls work(segments) for a run of the segments on each thread.
template <typename Work>
void for_runs(const Segments& all, Work work) {
  const int runs = threads();
#pragma omp parallel for num_threads(runs) schedule(static)
  for (int run = 0; run < runs; ++run) {
    Segments s = all;
    s.first = cut(all.last, runs, run);
    s.last = cut(all.last, runs, run + 1);
    if (s.channels > 0) work(s);
  }
}

Tensor segment_reduce(Tensor values, Tensor offsets, int64_t reduction) {
  const float* from = read<float>(values, 2, "values");
  const Segments all = check(offsets, values.size(0), values.size(1), reduction);
  Tensor result = make<float>(values, {all.last, all.channels});
  float* to = write<float>(result);
  for_runs(all, [&](const Segments& s) { kernels().reduce(s, static_cast<Reduction>(reduction), from, to); });
  return result;
}

// values and out: input and result of the reduction. Only the maximum looks at what is in them;
// for the others they may be any tensors of these shapes.
Tensor segment_reduce_grad(Tensor grad, Tensor values, Tensor out, Tensor offsets, int64_t reduction) {
  const bool looks = reduction == kMax;
  const float* from = read<float>(grad, 2, "grad");
  const float* x = read<float>(values, 2, "values", !looks);
  const float* highest = read<float>(out, 2, "out", !looks);
  const Segments all = check(offsets, values.size(0), values.size(1), reduction);
  STD_TORCH_CHECK(grad.size(0) == all.last && grad.size(1) == all.channels && out.size(0) == all.last &&
                      out.size(1) == all.channels, "grad and out must have a row for each segment");
  Tensor result = make<float>(grad, {values.size(0), all.channels});
  float* to = write<float>(result);
  for_runs(all, [&](const Segments& s) {
    kernels().reduce_grad(s, static_cast<Reduction>(reduction), from, x, highest, to);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("segment_reduce", TORCH_BOX(&segment_reduce));
  m.impl("segment_reduce_grad", TORCH_BOX(&segment_reduce_grad));
}

}  // namespace pcssl
