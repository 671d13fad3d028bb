#include "sparse_conv_tensors.h"

namespace pcssl::cuda {
namespace {

// features (N_in, C_in), grad (N_out, C_out) of one dtype, table (K, N_out). Returns (C_out, K, C_in) float32.
Tensor implicit_gemm_weight_grad(Tensor features, Tensor grad, Tensor table, bool tf32) {
  const int32_t* map = read<int32_t>(table, 2, "table");
  same_device(features, {&grad, &table});
  const Launch launch(features);
  const PieceRows left(grad, "grad", launch), right(features, "features", launch);
  STD_TORCH_CHECK(left.element == right.element, "grad and features have different dtypes");
  STD_TORCH_CHECK(grad.size(0) == table.size(1), "grad has ", grad.size(0), " rows, the table ", table.size(1));
  const int64_t rows = table.size(1), offsets = table.size(0), out = grad.size(1), in = features.size(1);
  Tensor result = make<float>(features, {out, offsets, in});
  if (result.numel() == 0) return result;

  const auto size = [](int64_t x) { return static_cast<int>(x); };
  const int runs = pcssl_cuda_weight_gradient_runs(rows, size(offsets), size(out), size(in));
  Tensor sums = make<float>(features, {runs > 1 ? runs : 0, out, offsets, in});
  launch.check(pcssl_cuda_weight_gradient(left.tensor.data_ptr(), right.tensor.data_ptr(), map, rows, size(offsets),
                                          left.pieces, right.pieces, size(out), size(in),
                                          product_of(left.element, tf32), runs, write<float>(sums),
                                          write<float>(result), launch.stream()));
  return result;
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) { m.impl("implicit_gemm_weight_grad", TORCH_BOX(&implicit_gemm_weight_grad)); }

}  // namespace pcssl::cuda
