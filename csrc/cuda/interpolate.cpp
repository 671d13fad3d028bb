#include "aten.h"

namespace pcssl::cuda {
namespace {

std::tuple<Tensor, Tensor> corner_weights(Tensor position, Tensor batch, Tensor sorted_keys, Tensor order, int64_t mode) {
  const float* at = read<float>(position, 2, "position");
  const int64_t* scene = read<int64_t>(batch, 1, "batch");
  const int64_t* keys = read<int64_t>(sorted_keys, 1, "sorted_keys");
  const int64_t* rows_of = read<int64_t>(order, 1, "order");
  const int64_t points = position.size(0);
  STD_TORCH_CHECK(position.size(1) == 3 && batch.size(0) == points, "position must be (P, 3), batch (P,)");
  STD_TORCH_CHECK(order.size(0) == sorted_keys.size(0), "order and sorted_keys differ in length");
  same_device(position, {&batch, &sorted_keys, &order});
  const Launch launch(position);
  Tensor rows = make<int32_t>(position, {points, 8}), weights = make<float>(position, {points, 8});
  launch.check(pcssl_cuda_corner_weights(at, scene, points, keys, rows_of, sorted_keys.size(0), static_cast<int>(mode),
                                         write<int32_t>(rows), write<float>(weights), launch.stream()));
  return {rows, weights};
}

// Rows that do not exist are left out: to refuse them would wait for the GPU.
Tensor weighted_rows(Tensor features, Tensor rows, Tensor weights) {
  const Rows x(features, "features");
  const int32_t* row = read<int32_t>(rows, 2, "rows");
  const float* weight = read<float>(weights, 2, "weights");
  const int64_t points = rows.size(0), width = rows.size(1);
  STD_TORCH_CHECK(weights.size(0) == points && weights.size(1) == width, "rows and weights differ in shape");
  same_device(features, {&rows, &weights});
  const Launch launch(features);
  Tensor result = torch::stable::new_empty(features, {points, x.channels});
  launch.check(pcssl_cuda_weighted_rows(x.element, x.data, x.count, x.channels, row, weight, points, width,
                                        result.data_ptr(), launch.stream()));
  return result;
}

// Atomic additions, whose order changes from run to run; with `deterministic`, entries are sorted by row and summed in
// the order of the points.
Tensor weighted_rows_grad(Tensor grad, Tensor rows, Tensor weights, int64_t num_rows, bool deterministic) {
  const Rows g(grad, "grad");
  const int32_t* row = read<int32_t>(rows, 2, "rows");
  const float* weight = read<float>(weights, 2, "weights");
  const int64_t points = rows.size(0), width = rows.size(1);
  STD_TORCH_CHECK(g.count == points && weights.size(0) == points && weights.size(1) == width,
                  "grad, rows and weights differ in shape");
  STD_TORCH_CHECK(num_rows >= 0 && num_rows < INT32_MAX, "too many rows");
  same_device(grad, {&rows, &weights});
  const Launch launch(grad);
  if (deterministic) {
    const auto [sorted, order] = sort(torch::stable::view(rows, {points * width}));
    Tensor result = torch::stable::new_empty(grad, {num_rows, g.channels});
    launch.check(pcssl_cuda_sum_weighted_rows(g.element, g.data, g.channels, write<int32_t>(sorted),
                                              write<int64_t>(order), weight, points, width, num_rows,
                                              result.data_ptr(), launch.stream()));
    return result;
  }
  Tensor sums = torch::stable::new_zeros(grad, {num_rows, g.channels}, ScalarType::Float);
  launch.check(pcssl_cuda_add_weighted_rows(g.element, g.data, g.channels, row, weight, points, width, num_rows,
                                            write<float>(sums), launch.stream()));
  return g.element == kFloat32 ? sums : torch::stable::to(sums, grad.scalar_type());
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) {
  m.impl("corner_weights", TORCH_BOX(&corner_weights));
  m.impl("weighted_rows", TORCH_BOX(&weighted_rows));
  m.impl("weighted_rows_grad", TORCH_BOX(&weighted_rows_grad));
}

}  // namespace pcssl::cuda
