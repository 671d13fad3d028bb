#include "tensors.h"

namespace pcssl::cuda {
namespace {

Tensor curve_codes(Tensor coords, bool swap, bool hilbert, int64_t depth) {
  const int32_t* from = read_voxels(coords, "coords");
  STD_TORCH_CHECK(depth >= 1 && depth <= 16, "depth must be 1 to 16");
  const Launch launch(coords);
  const int64_t rows = coords.size(0);
  Tensor result = make<int64_t>(coords, {rows});
  launch.check(pcssl_cuda_curve_codes(from, rows, swap, hilbert, static_cast<int>(depth), write<int64_t>(result),
                                      launch.stream()));
  return result;
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) { m.impl("curve_codes", TORCH_BOX(&curve_codes)); }

}  // namespace pcssl::cuda
