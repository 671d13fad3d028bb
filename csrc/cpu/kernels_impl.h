// Body of kernels_avx512.cpp, kernels_avx2.cpp and kernels_portable.cpp, which set LANES,
// TILE_ROWS, TILE_VECS, OUTER_ROWS and OUTER_VECS to fit their registers.
//
// Everything is in an unnamed namespace and no standard C++ header is included: an inline
// function compiled here with AVX-512 must never be the copy that the linker keeps for all.

#include "kernels.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace pcssl {
namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float LooseVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef int32_t LooseIntVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

constexpr int kStrip = TILE_VECS * LANES;
constexpr int kOuterStrip = OUTER_VECS * LANES;
// Depth of a pass over a strip: 192 x 32 floats of weights and 12 rows of features fit the L1 cache.
constexpr int kDepth = 192;
static_assert(kDepth % LANES == 0 && kLeftStrip % OUTER_ROWS == 0);

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline Vec broadcast(float x) { return x - Vec{}; }
inline int min_of(int a, int b) { return a < b ? a : b; }

int compact(const int32_t* table, int n, int32_t* into, int32_t* out) {
  int count = 0, i = 0;
#ifdef __AVX512F__
  __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; i + 16 <= n; i += 16) {
    __m512i row = _mm512_loadu_si512(table + i);
    __mmask16 there = _mm512_cmpge_epi32_mask(row, _mm512_setzero_si512());
    _mm512_storeu_si512(into + count, _mm512_maskz_compress_epi32(there, row));
    _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(there, place));
    count += __builtin_popcount(there);
    place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
  }
#endif
  for (; i < n; ++i) {
    into[count] = table[i];
    out[count] = i;
    count += table[i] >= 0;
  }
  return count;
}

void gather_tiles(const float* features, int64_t channels, const int32_t* rows, int count, float* panel) {
  const int whole = static_cast<int>(channels / LANES), rest = static_cast<int>(channels % LANES);
  const int64_t tile_size = static_cast<int64_t>(whole + (rest > 0)) * TILE_ROWS * LANES;
  for (int first = 0; first < count; first += TILE_ROWS, panel += tile_size) {
    const int height = min_of(TILE_ROWS, count - first);
    for (int r = 0; r < height; ++r) {
      const float* from = features + rows[first + r] * channels;
      float* to = panel + r * LANES;
      for (int c = 0; c < whole; ++c) store(to + c * (TILE_ROWS * LANES), load(from + c * LANES));
      for (int i = 0; i < rest; ++i) to[whole * (TILE_ROWS * LANES) + i] = from[whole * LANES + i];
    }
  }
}

// One step along the depth: sum[r] += a[r] * b.
template <int ROWS, int VECS>
inline __attribute__((always_inline)) void step(Vec (&sum)[ROWS][VECS], const float* a, const float* b) {
  Vec right[VECS];
#pragma GCC unroll 8
  for (int v = 0; v < VECS; ++v) right[v] = load(b + v * LANES);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const Vec left = broadcast(a[r * LANES]);
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) sum[r][v] += left * right[v];
  }
}

template <int ROWS, int VECS>
void multiply_tile(const float* a, int depth, const float* b, const int32_t* out, float* sums, int64_t ld) {
  Vec sum[ROWS][VECS] = {};
  for (; depth >= LANES; depth -= LANES, a += TILE_ROWS * LANES, b += LANES * kStrip)
#pragma GCC unroll 4
    for (int i = 0; i < LANES; ++i) step<ROWS, VECS>(sum, a + i, b + i * kStrip);
  for (int i = 0; i < depth; ++i) step<ROWS, VECS>(sum, a + i, b + i * kStrip);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    float* to = sums + out[r] * ld;
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) store(to + v * LANES, load(to + v * LANES) + sum[r][v]);
  }
}

typedef void (*TileFunction)(const float*, int, const float*, const int32_t*, float*, int64_t);

template <int ROWS, int VECS>
TileFunction tile_function(int rows, int vecs) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tile_function<ROWS - 1, VECS>(rows, vecs);
  if constexpr (VECS > 1)
    if (vecs < VECS) return tile_function<ROWS, VECS - 1>(rows, vecs);
  return multiply_tile<ROWS, VECS>;
}

void multiply(const float* panel, int count, int depth, const float* weight, int columns, const int32_t* out,
              float* sums, int64_t ld) {
  const int64_t tile_size = static_cast<int64_t>((depth + LANES - 1) / LANES) * TILE_ROWS * LANES;
  for (int from = 0; from < depth; from += kDepth) {
    const int size = min_of(kDepth, depth - from);
    for (int column = 0; column < columns; column += kStrip) {
      const int vecs = min_of(TILE_VECS, (columns - column + LANES - 1) / LANES);
      const float* b = weight + (static_cast<int64_t>(column) * depth + static_cast<int64_t>(from) * kStrip);
      const float* a = panel + from * TILE_ROWS;
      const TileFunction full = tile_function<TILE_ROWS, TILE_VECS>(TILE_ROWS, vecs);
      int row = 0;
      for (; row + TILE_ROWS <= count; row += TILE_ROWS, a += tile_size) full(a, size, b, out + row, sums + column, ld);
      if (row < count)
        tile_function<TILE_ROWS, TILE_VECS>(count - row, vecs)(a, size, b, out + row, sums + column, ld);
    }
  }
}

template <int WIDTH>
void gather_strips_of(const float* features, int64_t channels, const int32_t* rows, int count, float* panel) {
  const int64_t whole = channels / WIDTH * WIDTH, jump = static_cast<int64_t>(count) * WIDTH;
  for (int r = 0; r < count; ++r) {
    const float* from = features + rows[r] * channels;
    float* to = panel + r * WIDTH;
    for (int64_t c = 0; c < whole; c += WIDTH, to += jump)
#pragma GCC unroll 8
      for (int i = 0; i < WIDTH; i += LANES) store(to + i, load(from + c + i));
    if (whole < channels)
      for (int i = 0; i < WIDTH; ++i) to[i] = whole + i < channels ? from[whole + i] : 0.0f;
  }
}

void gather_left(const float* features, int64_t channels, const int32_t* rows, int count, float* panel) {
  gather_strips_of<kLeftStrip>(features, channels, rows, count, panel);
}

void gather_right(const float* features, int64_t channels, const int32_t* rows, int count, float* panel) {
  gather_strips_of<kOuterStrip>(features, channels, rows, count, panel);
}

template <int VECS>
void outer_tile(const float* left, const float* right, int count, float* sums, int64_t ld) {
  Vec sum[OUTER_ROWS][VECS] = {};
  for (int p = 0; p < count; ++p, left += kLeftStrip, right += kOuterStrip) {
    Vec b[VECS];
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) b[v] = load(right + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < OUTER_ROWS; ++r) {
      const Vec a = broadcast(left[r]);
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) sum[r][v] += a * b[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < OUTER_ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) {
      float* to = sums + r * ld + v * LANES;
      store(to, load(to) + sum[r][v]);
    }
}

template <int VECS>
void outer_columns(int vecs, const float* left, const float* right, int count, float* sums, int64_t ld) {
  if constexpr (VECS > 1)
    if (vecs < VECS) return outer_columns<VECS - 1>(vecs, left, right, count, sums, ld);
  outer_tile<VECS>(left, right, count, sums, ld);
}

void outer(const float* left, int rows, const float* right, int columns, int count, float* sums, int64_t ld) {
  for (int column = 0; column < columns; column += kOuterStrip) {
    const int vecs = min_of(OUTER_VECS, (columns - column + LANES - 1) / LANES);
    const float* b = right + static_cast<int64_t>(column) * count;
    for (int row = 0; row < rows; row += OUTER_ROWS) {
      const float* a = left + static_cast<int64_t>(row / kLeftStrip) * kLeftStrip * count + row % kLeftStrip;
      outer_columns<OUTER_VECS>(vecs, a, b, count, sums + row * ld + column, ld);
    }
  }
}

void add_scaled(const float* x, float scale, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(y + i, load(y + i) + broadcast(scale) * load(x + i));
  for (; i < n; ++i) y[i] += scale * x[i];
}

}  // namespace
}  // namespace pcssl

#include "curve_kernels.h"
#include "segment_kernels.h"
#include "voxel_kernels.h"

namespace pcssl {
namespace {

constexpr Kernels make_kernels(const char* name) {
  return {name, LANES, TILE_ROWS, kStrip, OUTER_ROWS, kOuterStrip, compact, gather_tiles, multiply,
          gather_left, gather_right, outer, add_scaled, rising, reduce, reduce_grad, voxel_keys, key_bounds,
          coord_bounds, curve_codes, rank_keys, take_ranks, shorten, coords_of};
}

}  // namespace
}  // namespace pcssl
