// The inner loops over channels, one set for each instruction set of the CPU.
#pragma once

#include <stdint.h>

#include "../keys.h"

namespace pcssl {

// Panels are copies of a few hundred feature rows, laid out so that `outer` reads them in order:
// they stay in the L2 cache, whatever the size of the scene.
constexpr int kLeftStrip = 16;

constexpr float kFar = 1e9f;  // beyond any voxel that has a key, and still an int32

// Which of 64 numbers in a row are in a set, and how many of the set are below all of these.
struct Ranks {
  uint64_t there;
  int64_t below;
};

enum Reduction { kSum, kMean, kMax };

// Segments first..last - 1 of rows of `channels` floats: segment i is the rows
// offsets[i]..offsets[i + 1] - 1. large: all rows together are more than the caches hold.
struct Segments {
  const int64_t* offsets;
  int64_t first, last, channels;
  bool large;
};

struct Kernels {
  const char* name;
  int lanes;         // floats in a vector
  int strip;         // columns of a strip of packed weights
  int outer_rows;    // `outer` keeps outer_rows x outer_strip sums in registers
  int outer_strip;

  // The entries >= 0 of table[0..n): their values to `into`, their places to `out`; how many.
  // Both lists need room for n + 16.
  int (*compact)(const int32_t* table, int n, int32_t* into, int32_t* out);

  // sums[out[r], 0..columns) += features[rows[r]] @ weight for r < count. features: rows of `depth` floats.
  // weight: [strip][depth][strip columns]. sums: leading dimension ld, a multiple of lanes.
  void (*multiply)(const float* features, int64_t depth, const int32_t* rows, int count, const float* weight,
                   int columns, const int32_t* out, float* sums, int64_t ld);

  // Rows of `features` to a panel [strip][count][width], padded with zeros to whole strips:
  // kLeftStrip wide for the left side of `outer`, outer_strip wide for the right side.
  void (*gather_left)(const float* features, int64_t channels, const int32_t* rows, int count, float* panel);
  void (*gather_right)(const float* features, int64_t channels, const int32_t* rows, int count, float* panel);

  // sums (rows, ld) += left^T @ right over `count` rows. rows: a multiple of outer_rows.
  void (*outer)(const float* left, int rows, const float* right, int columns, int count, float* sums, int64_t ld);

  // y[0..n) += scale * x[0..n)
  void (*add_scaled)(const float* x, float scale, int64_t n, float* y);

  // Whether the numbers, one at least, are not negative and do not fall.
  bool (*rising)(const int64_t* numbers, int64_t count);

  // out[i] = the reduction of segment i, 0 where it is empty.
  void (*reduce)(const Segments& segments, Reduction reduction, const float* values, float* out);

  // The gradient of `reduce`: to[r] for the rows of the segments. values and out are read by the
  // maximum alone; rows that share it share its gradient.
  void (*reduce_grad)(const Segments& segments, Reduction reduction, const float* grad, const float* values,
                      const float* out, float* to);

  // Keys of [batch, floor(points / edge)]; point i is of scene batch[i * step]. low and high
  // [batch, x, y, z]: widened to hold all of them, where far outside counts as kFar. Returns
  // whether all points are finite.
  bool (*voxel_keys)(const float* points, const int64_t* batch, int64_t step, int64_t count, float edge, int64_t* keys,
                     int64_t* low, int64_t* high);

  // low and high [batch, x, y, z] of keys, axes from 0 on: widened to hold all of them.
  void (*key_bounds)(const int64_t* keys, int64_t count, int64_t* low, int64_t* high);

  // low and high: the columns of coords (count, 4), widened to hold all of them.
  void (*coord_bounds)(const int32_t* coords, int64_t count, int32_t* low, int32_t* high);

  // Positions of coords (count, 4) along a curve through 2^depth cells an axis. swap: x and y change places.
  void (*curve_codes)(const int32_t* coords, int64_t count, bool swap, bool hilbert, int depth, int64_t* codes);

  // Ranks of short keys, in two levels: first[k >> 12] is about runs of 64 keys, of which only those with keys in
  // them are in `second` (room for as many as keys). Both are written, and the run of every key: its place in
  // `second`. Returns how many different keys there are.
  int64_t (*rank_keys)(const uint32_t* keys, int64_t count, Ranks* first, int64_t firsts, Ranks* second, int32_t* runs);

  // The rank of every key, how many keys have each rank, and the coords of each.
  void (*take_ranks)(const uint32_t* keys, int64_t count, const Ranks* second, const int32_t* runs,
                     const ShortKeys& how, int64_t* rank, int64_t* counts, int32_t* coords);

  // Keys of at most 32 bits, and the coords (count, 4) [batch, x, y, z] of such keys.
  void (*shorten)(const int64_t* keys, int64_t count, const ShortKeys& how, uint32_t* shortened);
  void (*coords_of)(const uint32_t* keys, int64_t count, const ShortKeys& how, int32_t* coords);
};

const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

// The best set this CPU can run, or the one chosen by `pcssl_use_cpu` or PCSSL_CPU.
const Kernels& kernels();

}  // namespace pcssl
