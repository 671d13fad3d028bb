#include "tensors.h"

namespace pcssl::cuda {
namespace {

Tensor neighbor_table(Tensor out_coords, Tensor sorted_keys, Tensor order, int64_t size, int64_t stride,
                      int64_t dilation) {
  const int32_t* coords = read_voxels(out_coords, "out_coords");
  const int64_t* keys = read<int64_t>(sorted_keys, 1, "sorted_keys");
  const int64_t* rows_of = read<int64_t>(order, 1, "order");
  const int64_t rows = out_coords.size(0), inputs = sorted_keys.size(0);
  STD_TORCH_CHECK(order.size(0) == inputs, "order and sorted_keys differ in length");
  STD_TORCH_CHECK(rows < INT32_MAX && inputs < INT32_MAX, "too many voxels for 32-bit rows");
  STD_TORCH_CHECK(size >= 1 && size <= 64 && stride >= 1 && stride <= INT32_MAX && dilation >= 1 && dilation <= 4096,
                  "bad kernel");
  same_device(out_coords, {&sorted_keys, &order});
  const Launch launch(out_coords);
  Tensor table = make<int32_t>(out_coords, {size * size * size, rows});
  // Outputs that may be the inputs are compared with them on the GPU, so that nothing waits for the answer.
  Tensor same = make<int32_t>(out_coords, {1});
  const bool may_be_same = rows == inputs && size % 2 == 1;
  if (may_be_same) torch::stable::fill_(same, 1);
  launch.check(pcssl_cuda_neighbor_table(coords, rows, keys, rows_of, inputs, static_cast<int>(size),
                                         static_cast<int>(stride), static_cast<int>(dilation),
                                         may_be_same ? write<int32_t>(same) : nullptr, write<int32_t>(table),
                                         launch.stream()));
  return table;
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) { m.impl("neighbor_table", TORCH_BOX(&neighbor_table)); }

}  // namespace pcssl::cuda
