// Positions of voxels along z-order and Hilbert curves.
#include <algorithm>

#include "cpu/kernels.h"
#include "tensors.h"

namespace pcssl {
namespace {

constexpr int64_t kRun = 8192;  // voxels that a thread takes at a time

// coords (N, 4), axes in 0..2^depth - 1. swap: x and y change places.
Tensor curve_codes(Tensor coords, bool swap, bool hilbert, int64_t depth) {
  const int32_t* from = read<int32_t>(coords, 2, "coords");
  STD_TORCH_CHECK(coords.size(1) == 4 && depth >= 1 && depth <= 16, "coords must be (N, 4), depth 1 to 16");
  const int64_t rows = coords.size(0);
  Tensor result = make<int64_t>(coords, {rows});
  int64_t* codes = write<int64_t>(result);
  const Kernels& cpu = kernels();
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t first = 0; first < rows; first += kRun)
    cpu.curve_codes(from + 4 * first, std::min(kRun, rows - first), swap, hilbert, static_cast<int>(depth), codes + first);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) { m.impl("curve_codes", TORCH_BOX(&curve_codes)); }

}  // namespace pcssl
