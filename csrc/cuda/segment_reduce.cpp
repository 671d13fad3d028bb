#include "tensors.h"

namespace pcssl::cuda {
namespace {

// Offsets lie in memory of the GPU and are not looked at here: those out of range are moved into it there.
int64_t segments_of(const Tensor& values, const Tensor& offsets, int64_t reduction) {
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "unknown reduction");
  read<int64_t>(offsets, 1, "offsets");
  STD_TORCH_CHECK(offsets.size(0) > 0, "offsets must have one entry more than there are segments");
  same_device(values, {&offsets});
  return offsets.size(0) - 1;
}

Tensor segment_reduce(Tensor values, Tensor offsets, int64_t reduction) {
  const Rows x(values, "values");
  const int64_t segments = segments_of(values, offsets, reduction);
  const Launch launch(values);
  Tensor result = torch::stable::new_empty(values, {segments, x.channels});
  launch.check(pcssl_cuda_segment_reduce(x.element, x.data, x.count, x.channels, write<int64_t>(offsets), segments,
                                         static_cast<int>(reduction), result.data_ptr(), launch.stream()));
  return result;
}

// Only the maximum looks at more than the shapes of values and out.
Tensor segment_reduce_grad(Tensor grad, Tensor values, Tensor out, Tensor offsets, int64_t reduction) {
  const bool shapes = reduction != 2;
  const Rows g(grad, "grad"), x(values, "values", shapes), top(out, "out", shapes);
  const int64_t segments = segments_of(values, offsets, reduction);
  STD_TORCH_CHECK(g.element == x.element && top.element == x.element, "grad, values and out differ in dtype");
  STD_TORCH_CHECK(g.count == segments && g.channels == x.channels && top.count == segments &&
                      top.channels == x.channels, "grad and out must have a row for each segment");
  same_device(values, {&grad, &out});
  const Launch launch(values);
  Tensor result = torch::stable::new_empty(values, {x.count, x.channels});
  launch.check(pcssl_cuda_segment_reduce_grad(x.element, g.data, x.data, top.data, x.count, x.channels,
                                              write<int64_t>(offsets), segments, static_cast<int>(reduction),
                                              result.data_ptr(), launch.stream()));
  return result;
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) {
  m.impl("segment_reduce", TORCH_BOX(&segment_reduce));
  m.impl("segment_reduce_grad", TORCH_BOX(&segment_reduce_grad));
}

}  // namespace pcssl::cuda
