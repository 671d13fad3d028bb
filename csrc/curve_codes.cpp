// Positions of voxels along z-order and Hilbert curves.
#include "cpu/kernels.h"
#include "tensors.h"

namespace pcssl {
namespace {

// coords (N, 4), axes in 0..2^depth - 1. swap: x and y change places.
Tensor curve_codes(Tensor coords, bool swap, bool hilbert, int64_t depth) {
  const int32_t* from = read<int32_t>(coords, 2, "coords");
  STD_TORCH_CHECK(coords.size(1) == 4 && depth >= 1 && depth <= 16, "coords must be (N, 4), depth 1 to 16");
  const int64_t rows = coords.size(0);
  Tensor result = make<int64_t>(coords, {rows});
  int64_t* codes = write<int64_t>(result);
  const int runs = threads();
#pragma omp parallel for num_threads(runs) schedule(static)
  for (int run = 0; run < runs; ++run) {
    const int64_t first = cut(rows, runs, run), count = cut(rows, runs, run + 1) - first;
    kernels().curve_codes(from + 4 * first, count, swap, hilbert, static_cast<int>(depth), codes + first);
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) { m.impl("curve_codes", TORCH_BOX(&curve_codes)); }

}  // namespace pcssl
