// 32 registers of 16 floats.
#define LANES 16
#define TILE_ROWS 12
#define TILE_VECS 2
#define OUTER_ROWS 8
#define OUTER_VECS 2
#include "kernels_impl.h"

namespace pcssl {
const Kernels* avx512_kernels() {
  static constexpr Kernels set = make_kernels("avx512");
  return &set;
}
}  // namespace pcssl
