// The part of kernels_impl.h for positions along space-filling curves.
#pragma once

namespace pcssl {
namespace {

constexpr int kCurveBlock = 64;  // voxels worked on together, so that the compiler can use vectors

// Moves bit i of a 16-bit number to bit 3 i.
inline uint64_t spread(uint64_t x) {
  x = (x | (x << 16)) & 0x0000FF0000FF;
  x = (x | (x << 8)) & 0x00F00F00F00F;
  x = (x | (x << 4)) & 0x0C30C30C30C3;
  return (x | (x << 2)) & 0x249249249249;
}

// Skilling's transform ("Programming the Hilbert curve", 2004) of axes to the transposed index.
// Masks stand for its branches.
inline void hilbert_transpose(uint32_t (&x)[3][kCurveBlock], int depth) {
  for (int bit = depth - 1; bit > 0; --bit) {
    const uint32_t below = (1u << bit) - 1;
    for (int a = 0; a < 3; ++a)
      for (int i = 0; i < kCurveBlock; ++i) {
        const uint32_t high = -((x[a][i] >> bit) & 1);
        const uint32_t swap = (x[0][i] ^ x[a][i]) & below & ~high;
        x[a][i] ^= swap;
        x[0][i] ^= (a ? swap : 0) | (below & high);
      }
  }
  for (int i = 0; i < kCurveBlock; ++i) {
    x[1][i] ^= x[0][i];
    x[2][i] ^= x[1][i];
  }
  uint32_t t[kCurveBlock] = {};
  for (int bit = depth - 1; bit > 0; --bit)
    for (int i = 0; i < kCurveBlock; ++i) t[i] ^= ((1u << bit) - 1) & -((x[2][i] >> bit) & 1);
  for (int a = 0; a < 3; ++a)
    for (int i = 0; i < kCurveBlock; ++i) x[a][i] ^= t[i];
}

void curve_codes(const int32_t* coords, int64_t count, bool swap, bool hilbert, int depth, int64_t* codes) {
  const int first_axis = swap ? 2 : 1, second_axis = swap ? 1 : 2;
  for (int64_t first = 0; first < count; first += kCurveBlock) {
    const int size = static_cast<int>(count - first < kCurveBlock ? count - first : kCurveBlock);
    const int32_t* from = coords + 4 * first;
    uint32_t x[3][kCurveBlock] = {};
    for (int i = 0; i < size; ++i) {
      x[0][i] = static_cast<uint32_t>(from[4 * i + first_axis]);
      x[1][i] = static_cast<uint32_t>(from[4 * i + second_axis]);
      x[2][i] = static_cast<uint32_t>(from[4 * i + 3]);
    }
    if (hilbert) hilbert_transpose(x, depth);
    for (int i = 0; i < size; ++i)
      codes[first + i] = static_cast<int64_t>(static_cast<uint64_t>(from[4 * i]) << (3 * depth) | spread(x[0][i]) << 2 |
                                              spread(x[1][i]) << 1 | spread(x[2][i]));
  }
}

void coord_bounds(const int32_t* coords, int64_t count, int32_t* low, int32_t* high) {
  IntVec lowest = INT32_MAX - IntVec{}, highest = INT32_MIN - IntVec{};
  int64_t i = 0;
  for (; i + LANES <= 4 * count; i += LANES) {
    const IntVec x = *reinterpret_cast<const LooseIntVec*>(coords + i);
    lowest = x < lowest ? x : lowest;
    highest = x > highest ? x : highest;
  }
  for (; i < 4 * count; ++i) {
    lowest[i % 4] = coords[i] < lowest[i % 4] ? coords[i] : lowest[i % 4];
    highest[i % 4] = coords[i] > highest[i % 4] ? coords[i] : highest[i % 4];
  }
  for (int c = 0; c < LANES; ++c) {
    low[c % 4] = lowest[c] < low[c % 4] ? lowest[c] : low[c % 4];
    high[c % 4] = highest[c] > high[c % 4] ? highest[c] : high[c % 4];
  }
}

}  // namespace
}  // namespace pcssl
