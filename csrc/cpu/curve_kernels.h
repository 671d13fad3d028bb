// The part of kernels_impl.h for coordinates of voxels: their bounds and their places along curves.
#pragma once

namespace pcssl {
namespace {

void bounds(const int32_t* coords, int64_t rows, int32_t* low, int32_t* high) {
  // The columns take turns in the lanes.
  IntVec lowest = INT32_MAX - IntVec{}, highest = INT32_MIN - IntVec{};
  const int64_t count = 4 * rows;
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const IntVec x = *reinterpret_cast<const LooseIntVec*>(coords + i);
    lowest = x < lowest ? x : lowest;
    highest = x > highest ? x : highest;
  }
  for (int c = 0; c < 4; ++c) low[c] = INT32_MAX, high[c] = INT32_MIN;
  for (int l = 0; l < LANES; ++l) {
    low[l % 4] = lowest[l] < low[l % 4] ? lowest[l] : low[l % 4];
    high[l % 4] = highest[l] > high[l % 4] ? highest[l] : high[l % 4];
  }
  for (; i < count; ++i) {
    low[i % 4] = coords[i] < low[i % 4] ? coords[i] : low[i % 4];
    high[i % 4] = coords[i] > high[i % 4] ? coords[i] : high[i % 4];
  }
}

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
  for (int64_t first = 0; first < count; first += kCurveBlock) {
    const int size = static_cast<int>(count - first < kCurveBlock ? count - first : kCurveBlock);
    const int32_t* from = coords + 4 * first;
    int32_t spare[4 * kCurveBlock] = {};
    if (size < kCurveBlock) {
      for (int i = 0; i < 4 * size; ++i) spare[i] = from[i];
      from = spare;
    }
    uint32_t x[3][kCurveBlock];
    for (int i = 0; i < kCurveBlock; ++i) {
      x[0][i] = from[4 * i + (swap ? 2 : 1)];
      x[1][i] = from[4 * i + (swap ? 1 : 2)];
      x[2][i] = from[4 * i + 3];
    }
    if (hilbert) hilbert_transpose(x, depth);
    int64_t found[kCurveBlock];
    for (int i = 0; i < kCurveBlock; ++i)
      found[i] = (static_cast<int64_t>(from[4 * i]) << (3 * depth)) |
                 static_cast<int64_t>(spread(x[0][i]) << 2 | spread(x[1][i]) << 1 | spread(x[2][i]));
    for (int i = 0; i < size; ++i) codes[first + i] = found[i];
  }
}

}  // namespace
}  // namespace pcssl
