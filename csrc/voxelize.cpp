// Points to voxels: keys of points, and the distinct keys among them in ascending order.
#include <algorithm>
#include <bit>
#include <tuple>

#include "cpu/kernels.h"
#include "keys.h"
#include "radix_sort.h"
#include "tensors.h"

namespace pcssl {
namespace {

// Lowest and highest [batch, x, y, z].
struct Bounds {
  int64_t low[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
  int64_t high[4] = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};

  void add(const Bounds& other) {
    for (int a = 0; a < 4; ++a) {
      low[a] = std::min(low[a], other.low[a]);
      high[a] = std::max(high[a], other.high[a]);
    }
  }
};

// batch: (N,) at any stride. Keys of floor(points / size), and (2, 4) the lowest and highest [batch, x, y, z].
// The keys mean nothing where the bounds leave the range; points that are not finite put
// INT64_MIN into the bounds.
std::tuple<Tensor, Tensor> voxel_keys(Tensor points, double size, Tensor batch) {
  const float* xyz = read<float>(points, 2, "points");
  const int64_t* scene = read<int64_t>(batch, 1, "batch", true);
  const int64_t rows = points.size(0);
  STD_TORCH_CHECK(points.size(1) == 3 && batch.size(0) == rows, "points must be (N, 3), batch (N,)");
  Tensor result = make<int64_t>(points, {rows}), limits = make<int64_t>(points, {2, 4});
  int64_t* keys = write<int64_t>(result);
  const Kernels& cpu = kernels();
  const int64_t step = batch.stride(0);
  const int runs = threads();

  Bounds bounds;
  bool finite = true;
#pragma omp parallel for num_threads(runs) schedule(static)
  for (int run = 0; run < runs; ++run) {
    const int64_t first = cut(rows, runs, run), count = cut(rows, runs, run + 1) - first;
    Bounds mine;
    const bool all_finite = cpu.voxel_keys(xyz + 3 * first, scene + first * step, step, count, static_cast<float>(size),
                                           keys + first, mine.low, mine.high);
#pragma omp critical(voxel_keys)
    {
      bounds.add(mine);
      finite = finite && all_finite;
    }
  }
  if (!finite) std::fill_n(bounds.low, 4, INT64_MIN);
  std::copy_n(bounds.low, 4, write<int64_t>(limits));
  std::copy_n(bounds.high, 4, write<int64_t>(limits) + 4);
  return {result, limits};
}

ShortKeys how_to_shorten(const int64_t* keys, int64_t count) {
  ShortKeys how;
  if (count == 0) return how;
  Bounds bounds;
  kernels().key_bounds(keys, count, bounds.low, bounds.high);
  const auto [b, x, y, z] = bounds.low;
  how.corner = pack_key(b, x + kLowest, y + kLowest, z + kLowest);
  for (int a = 3; a >= 0; --a) {
    const int width = std::bit_width(static_cast<uint64_t>(bounds.high[a] - bounds.low[a]));
    how.shift[a] = (3 - a) * kAxisBits - how.bits;
    how.mask[a] = ((uint64_t{1} << width) - 1) << how.bits;
    how.bits += width;
  }
  return how;
}

void shorten(const int64_t* keys, int64_t count, const ShortKeys& how, uint32_t* shortened) {
  kernels().shorten(keys, count, how, shortened);
}
void shorten(const int64_t* keys, int64_t count, const ShortKeys& how, uint64_t* shortened) {
  for (int64_t i = 0; i < count; ++i) shortened[i] = short_key(keys[i], how);
}

void coords_of(const uint32_t* keys, int64_t count, const ShortKeys& how, int32_t* coords) {
  kernels().coords_of(keys, count, how, coords);
}
void coords_of(const uint64_t* keys, int64_t count, const ShortKeys& how, int32_t* coords) {
  for (int64_t i = 0; i < count; ++i) unpack_key(full_key(keys[i], how), coords + 4 * i);
}

// Short: what holds a shortened key.
template <typename Short>
std::tuple<Tensor, Tensor, Tensor> unique(const Tensor& keys, const ShortKeys& how) {
  const int64_t* from = read<int64_t>(keys, 1, "keys");
  const int64_t rows = keys.size(0);
  const Scratch<Short> short_keys(rows);
  const Scratch<KeyRow<Short>> pairs(rows), spare(rows);
  shorten(from, rows, how, short_keys.get());
  const KeyRow<Short>* sorted = sort_by_key(short_keys.get(), rows, pairs.get(), spare.get());

  int64_t count = rows > 0;
  for (int64_t i = 1; i < rows; ++i) count += sorted[i].key != sorted[i - 1].key;
  Tensor coords = make<int32_t>(keys, {count, 4}), inverse = make<int64_t>(keys, {rows}), counts = make<int64_t>(keys, {count});
  int64_t* voxel_of = write<int64_t>(inverse);
  int64_t* end = write<int64_t>(counts);
  Short* distinct = short_keys.get();  // they are not needed any more
  // No branch on whether a voxel begins: the CPU could not predict it.
  for (int64_t i = 0, at = 0; i < rows; ++i) {
    constexpr int64_t kAhead = 64;
    if (i + kAhead < rows) __builtin_prefetch(voxel_of + sorted[i + kAhead].row, 1);
    at += i > 0 && sorted[i].key != sorted[i - 1].key;
    distinct[at] = sorted[i].key;
    end[at] = i + 1;
    voxel_of[sorted[i].row] = at;
  }
  for (int64_t v = count - 1; v > 0; --v) end[v] -= end[v - 1];
  coords_of(distinct, count, how, write<int32_t>(coords));
  return {coords, inverse, counts};
}

// Distinct keys, ascending, as coords (M, 4) int32; the voxel of every key; how many keys each has.
std::tuple<Tensor, Tensor, Tensor> unique_voxels(Tensor keys) {
  const int64_t* from = read<int64_t>(keys, 1, "keys");
  const int64_t rows = keys.size(0);
  STD_TORCH_CHECK(rows < INT32_MAX, "too many points");
  const ShortKeys how = how_to_shorten(from, rows);
  return how.bits <= 32 ? unique<uint32_t>(keys, how) : unique<uint64_t>(keys, how);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("voxel_keys", TORCH_BOX(&voxel_keys));
  m.impl("unique_voxels", TORCH_BOX(&unique_voxels));
}

}  // namespace pcssl
