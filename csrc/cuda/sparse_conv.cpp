#include <optional>

#include "sparse_conv_tensors.h"

namespace pcssl::cuda {
namespace {

// features (N_in, C_in), weight (K, C_in, C_out) at any strides, bias (C_out,) float32 or none.
// plan: the table (K, N_out), its columns sorted, and the masks of their tiles. back is for the gradient.
// flip: weight k belongs to offset K - 1 - k.
Tensor implicit_gemm(Tensor features, Tensor weight, std::optional<Tensor> bias, std::vector<Tensor> plan,
                     std::vector<Tensor>, bool flip, bool tf32) {
  STD_TORCH_CHECK(plan.size() == 3, "a plan has three tensors");
  const Tensor &table = plan[0], &rows = plan[1], &masks = plan[2];
  same_device(features, {&weight, &table, &rows, &masks});
  if (bias) same_device(features, {&*bias});
  const int64_t offsets = weight.size(0), in = weight.size(1), out = weight.size(2), padded = rows.size(1);
  const int32_t* sorted = read<int32_t>(rows, 2, "rows");
  const int32_t* tiles = read<int32_t>(masks, 2, "masks");
  const float* start = bias ? read<float>(*bias, 1, "bias") : nullptr;
  STD_TORCH_CHECK(weight.dim() == 3 && features.size(1) == in, "features have ", features.size(1),
                  " channels, weight wants ", in);
  STD_TORCH_CHECK(table.size(0) == offsets && rows.size(0) == offsets + 1 && masks.size(1) == parts_of(offsets, 32),
                  "the plan has other offsets than the weight, ", offsets);
  STD_TORCH_CHECK(padded == round_up(table.size(1), 128) && masks.size(0) == padded / 32, "the plan is of other rows");
  STD_TORCH_CHECK(!bias || bias->size(0) == out, "bias has ", bias->size(0), " channels, weight ", out);

  const Launch launch(features);
  const PieceRows from(features, "features", launch);
  const Product product = product_of(from.element, tf32);
  Tensor result = torch::stable::new_empty(features, {table.size(1), out});
  if (result.numel() == 0) return result;
  Tensor packed = torch::stable::new_empty(features, {offsets, out, from.width()});
  launch.check(pcssl_cuda_pack_weight(weight.data_ptr(), element_of(weight, "weight"), weight.stride(0),
                                      weight.stride(1), weight.stride(2), static_cast<int>(offsets),
                                      static_cast<int>(in), static_cast<int>(out), static_cast<int>(from.width()),
                                      product, flip, packed.data_ptr(), launch.stream()));
  launch.check(pcssl_cuda_implicit_gemm(from.tensor.data_ptr(), packed.data_ptr(), start, sorted,
                                        reinterpret_cast<const uint32_t*>(tiles), padded, static_cast<int>(offsets),
                                        from.pieces, static_cast<int>(out), product, result.data_ptr(),
                                        launch.stream()));
  return result;
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) { m.impl("implicit_gemm", TORCH_BOX(&implicit_gemm)); }

}  // namespace pcssl::cuda
