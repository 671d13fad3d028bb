// Any CPU: vectors of 4 floats, which SSE2 and NEON have.
#define LANES 4
#define TILE_ROWS 6
#define TILE_VECS 2
#define OUTER_ROWS 4
#define OUTER_VECS 2
#include "kernels_impl.h"

namespace pcssl {
const Kernels* portable_kernels() {
  static constexpr Kernels set = make_kernels("portable");
  return &set;
}
}  // namespace pcssl
