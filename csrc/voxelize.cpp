// Points to voxels: keys of points, and the distinct keys among them in ascending order.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "keys.h"
#include "radix_sort.h"
#include "tensors.h"

namespace pcssl {
namespace {

// Keys of floor(points / size), and (2, 4) the lowest and highest [batch, x, y, z].
// The keys mean nothing where the bounds leave the range; points that are not finite put
// INT64_MIN into the bounds.
std::tuple<Tensor, Tensor> voxel_keys(Tensor points, double size, Tensor batch) {
  const float* xyz = read<float>(points, 2, "points");
  const int64_t* scene = read<int64_t>(batch, 1, "batch");
  const int64_t rows = points.size(0);
  STD_TORCH_CHECK(points.size(1) == 3 && batch.size(0) == rows, "points must be (N, 3), batch (N,)");
  Tensor result = make<int64_t>(points, {rows}), limits = make<int64_t>(points, {2, 4});
  int64_t* keys = write<int64_t>(result);
  const float edge = static_cast<float>(size);

  int64_t low[4], high[4];
  std::fill_n(low, 4, INT64_MAX);
  std::fill_n(high, 4, INT64_MIN);
  bool finite = true;
#pragma omp parallel for num_threads(threads()) schedule(static) \
    reduction(min : low[:4]) reduction(max : high[:4]) reduction(&& : finite)
  for (int64_t i = 0; i < rows; ++i) {
    int64_t voxel[4] = {scene[i]};
    for (int a = 0; a < 3; ++a) {
      const float x = xyz[3 * i + a];
      finite = finite && std::isfinite(x);
      // Far outside is far outside: a float of any size must not overflow the integer.
      voxel[a + 1] = std::isfinite(x) ? static_cast<int64_t>(std::clamp(std::floor(x / edge), -1e15f, 1e15f)) : 0;
    }
    for (int a = 0; a < 4; ++a) {
      low[a] = std::min(low[a], voxel[a]);
      high[a] = std::max(high[a], voxel[a]);
    }
    keys[i] = static_cast<int64_t>(
        (((((static_cast<uint64_t>(voxel[0]) << kAxisBits) + (voxel[1] - kLowest)) << kAxisBits) + (voxel[2] - kLowest))
         << kAxisBits) + (voxel[3] - kLowest));
  }
  if (!finite) std::fill_n(low, 4, INT64_MIN);
  std::copy_n(low, 4, write<int64_t>(limits));
  std::copy_n(high, 4, write<int64_t>(limits) + 4);
  return {result, limits};
}

// The key of the lowest value of each axis: subtracting it leaves few bits to sort by.
int64_t corner(const int64_t* keys, int64_t count) {
  constexpr int64_t mask = (1 << kAxisBits) - 1;
  int64_t low[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
  for (int64_t i = 0; i < count; ++i) {
    low[0] = std::min(low[0], keys[i] >> (3 * kAxisBits));
    for (int a = 1; a < 4; ++a) low[a] = std::min(low[a], (keys[i] >> ((3 - a) * kAxisBits)) & mask);
  }
  return count ? pack_key(low[0], low[1] + kLowest, low[2] + kLowest, low[3] + kLowest) : 0;
}

// Distinct keys, ascending, as coords (M, 4) int32; the voxel of every key; how many keys each has.
std::tuple<Tensor, Tensor, Tensor> unique_voxels(Tensor keys) {
  const int64_t* from = read<int64_t>(keys, 1, "keys");
  const int64_t rows = keys.size(0);
  STD_TORCH_CHECK(rows < INT32_MAX, "too many points");
  const int64_t shift = corner(from, rows);
  const Scratch<KeyRow> pairs(rows), spare(rows);
  for (int64_t i = 0; i < rows; ++i) pairs[i] = {from[i] - shift, static_cast<int32_t>(i)};
  const KeyRow* sorted = sort_by_key(pairs.get(), spare.get(), rows);

  int64_t count = 0;
  for (int64_t i = 0; i < rows; ++i) count += i == 0 || sorted[i].key != sorted[i - 1].key;
  Tensor coords = make<int32_t>(keys, {count, 4}), inverse = make<int64_t>(keys, {rows}), counts = make<int64_t>(keys, {count});
  int32_t* voxel = write<int32_t>(coords);
  int64_t* voxel_of = write<int64_t>(inverse);
  int64_t* points_in = write<int64_t>(counts);
  constexpr int64_t mask = (1 << kAxisBits) - 1;
  int64_t at = -1;
  for (int64_t i = 0; i < rows; ++i) {
    if (i == 0 || sorted[i].key != sorted[i - 1].key) {
      const int64_t key = sorted[i].key + shift;
      points_in[++at] = 0;
      voxel[4 * at] = static_cast<int32_t>(key >> (3 * kAxisBits));
      for (int a = 1; a < 4; ++a)
        voxel[4 * at + a] = static_cast<int32_t>(((key >> ((3 - a) * kAxisBits)) & mask) + kLowest);
    }
    ++points_in[at];
    voxel_of[sorted[i].row] = at;
  }
  return {coords, inverse, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("voxel_keys", TORCH_BOX(&voxel_keys));
  m.impl("unique_voxels", TORCH_BOX(&unique_voxels));
}

}  // namespace pcssl
