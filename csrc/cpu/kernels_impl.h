// Body of kernels_avx512.cpp, kernels_avx2.cpp and kernels_portable.cpp, which set LANES,
// TILE_ROWS, TILE_VECS, OUTER_ROWS and OUTER_VECS to fit their registers.
//
// Everything is in an unnamed namespace and no standard C++ header is included: an inline
// function compiled here with AVX-512 must never be the copy that the linker keeps for all.

#include "kernels.h"

#ifdef __AVX2__
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
static_assert(kLeftStrip % OUTER_ROWS == 0);

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
// Past the caches, without reading what was there; p: at the boundary of a vector. `written` ends a run of these.
#ifdef __AVX512F__
inline void stream(float* p, Vec v) { _mm512_stream_ps(p, reinterpret_cast<const __m512&>(v)); }
inline void written() { _mm_sfence(); }
#elif defined(__AVX2__)
inline void stream(float* p, Vec v) { _mm256_stream_ps(p, reinterpret_cast<const __m256&>(v)); }
inline void written() { _mm_sfence(); }
#else
inline void stream(float* p, Vec v) { store(p, v); }
inline void written() {}
#endif
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

// Asks for a row of features, which the CPU cannot see coming.
inline void fetch_row(const float* features, int64_t channels, int32_t row) {
  for (int64_t c = 0; c < channels; c += 16) __builtin_prefetch(features + row * channels + c);
}

// sums[out[r]] += features[rows[r]] @ weight for ROWS rows and VECS vectors of columns.
template <int ROWS, int VECS>
void multiply_tile(const float* features, int64_t depth, const int32_t* rows, const float* weight, const int32_t* out,
                   float* sums, int64_t ld) {
  Vec sum[ROWS][VECS] = {};
  const float* from[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) from[r] = features + rows[r] * depth;
  for (int64_t i = 0; i < depth; ++i, weight += kStrip) {
    Vec right[VECS];
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) right[v] = load(weight + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vec left = broadcast(from[r][i]);
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    float* to = sums + out[r] * ld;
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) store(to + v * LANES, load(to + v * LANES) + sum[r][v]);
  }
}

typedef void (*TileFunction)(const float*, int64_t, const int32_t*, const float*, const int32_t*, float*, int64_t);

template <int ROWS, int VECS>
TileFunction tile_function(int rows, int vecs) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tile_function<ROWS - 1, VECS>(rows, vecs);
  if constexpr (VECS > 1)
    if (vecs < VECS) return tile_function<ROWS, VECS - 1>(rows, vecs);
  return multiply_tile<ROWS, VECS>;
}

void multiply(const float* features, int64_t depth, const int32_t* rows, int count, const float* weight, int columns,
              const int32_t* out, float* sums, int64_t ld) {
  for (int row = 0; row < count; row += TILE_ROWS) {
    const int next = min_of(row + TILE_ROWS, count);
    for (int r = next; r < min_of(next + TILE_ROWS, count); ++r) fetch_row(features, depth, rows[r]);
    for (int column = 0; column < columns; column += kStrip) {
      const int vecs = min_of(TILE_VECS, (columns - column + LANES - 1) / LANES);
      const TileFunction tile = tile_function<TILE_ROWS, TILE_VECS>(next - row, vecs);
      tile(features, depth, rows + row, weight + column * depth, out + row, sums + column, ld);
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
  return {name, LANES, kStrip, OUTER_ROWS, kOuterStrip, compact, multiply,
          gather_left, gather_right, outer, add_scaled, rising, reduce, reduce_grad, voxel_keys, key_bounds,
          coord_bounds, curve_codes, rank_keys, take_ranks, shorten, coords_of};
}

}  // namespace
}  // namespace pcssl
