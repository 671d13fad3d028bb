// Positions of voxels along z-order and Hilbert curves.
#include <algorithm>

#include "tensors.h"

namespace pcssl {
namespace {

constexpr int kBlock = 64;  // voxels worked on together, so that the compiler can use vectors

// Moves bit i of a 16-bit number to bit 3 i.
inline uint64_t spread(uint64_t x) {
  x = (x | (x << 16)) & 0x0000FF0000FF;
  x = (x | (x << 8)) & 0x00F00F00F00F;
  x = (x | (x << 4)) & 0x0C30C30C30C3;
  return (x | (x << 2)) & 0x249249249249;
}

// Skilling's transform ("Programming the Hilbert curve", 2004) of axes to the transposed index.
// Masks stand for its branches.
void hilbert_transpose(uint32_t (&x)[3][kBlock], int depth) {
  for (int bit = depth - 1; bit > 0; --bit) {
    const uint32_t below = (1u << bit) - 1;
    for (int a = 0; a < 3; ++a)
      for (int i = 0; i < kBlock; ++i) {
        const uint32_t high = -((x[a][i] >> bit) & 1);
        const uint32_t swap = (x[0][i] ^ x[a][i]) & below & ~high;
        x[a][i] ^= swap;
        x[0][i] ^= (a ? swap : 0) | (below & high);
      }
  }
  for (int i = 0; i < kBlock; ++i) {
    x[1][i] ^= x[0][i];
    x[2][i] ^= x[1][i];
  }
  uint32_t t[kBlock] = {};
  for (int bit = depth - 1; bit > 0; --bit)
    for (int i = 0; i < kBlock; ++i) t[i] ^= ((1u << bit) - 1) & -((x[2][i] >> bit) & 1);
  for (int a = 0; a < 3; ++a)
    for (int i = 0; i < kBlock; ++i) x[a][i] ^= t[i];
}

// coords (N, 4), axes in 0..2^depth - 1. swap: x and y change places.
Tensor curve_codes(Tensor coords, bool swap, bool hilbert, int64_t depth) {
  const int32_t* from = read<int32_t>(coords, 2, "coords");
  STD_TORCH_CHECK(coords.size(1) == 4 && depth >= 1 && depth <= 16, "coords must be (N, 4), depth 1 to 16");
  const int64_t rows = coords.size(0);
  Tensor result = make<int64_t>(coords, {rows});
  int64_t* codes = write<int64_t>(result);
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int size = static_cast<int>(std::min<int64_t>(kBlock, rows - first));
    uint32_t x[3][kBlock] = {};
    for (int i = 0; i < size; ++i)
      for (int a = 0; a < 3; ++a) x[a][i] = from[4 * (first + i) + 1 + (swap && a < 2 ? 1 - a : a)];
    if (hilbert) hilbert_transpose(x, static_cast<int>(depth));
    for (int i = 0; i < size; ++i)
      codes[first + i] = (static_cast<int64_t>(from[4 * (first + i)]) << (3 * depth)) |
                         static_cast<int64_t>(spread(x[0][i]) << 2 | spread(x[1][i]) << 1 | spread(x[2][i]));
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) { m.impl("curve_codes", TORCH_BOX(&curve_codes)); }

}  // namespace pcssl
