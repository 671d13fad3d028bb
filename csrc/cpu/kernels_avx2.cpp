// 16 registers of 8 floats.
#define LANES 8
#define TILE_ROWS 6
#define TILE_VECS 2
#define OUTER_ROWS 4
#define OUTER_VECS 3
#include "kernels_impl.h"

namespace pcssl {
const Kernels* avx2_kernels() {
  static constexpr Kernels set = make_kernels("avx2");
  return &set;
}
}  // namespace pcssl
