// Points to voxels: keys of points, and the distinct keys among them in ascending order.
#include <algorithm>
#include <tuple>

#include "sorted_keys.h"

namespace pcssl {
namespace {

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
  Bounds bounds;
  const bool finite = key_points(xyz, scene, batch.stride(0), rows, static_cast<float>(size), keys, bounds);
  if (!finite) std::fill_n(bounds.low, 4, INT64_MIN);
  std::copy_n(bounds.low, 4, write<int64_t>(limits));
  std::copy_n(bounds.high, 4, write<int64_t>(limits) + 4);
  return {result, limits};
}

// Keys so close together that sets of them fit beside them are numbered without sorting.
int64_t sets_of(const ShortKeys& how) { return (int64_t{1} << how.bits >> 12) + 1; }

std::tuple<Tensor, Tensor, Tensor> unique_near(const Tensor& keys, const ShortKeys& how) {
  const int64_t rows = keys.size(0);
  const Scratch<uint32_t> near(rows);
  const Scratch<int32_t> runs(rows);
  const Scratch<Ranks> first(sets_of(how)), second(rows);
  kernels().shorten(read<int64_t>(keys, 1, "keys"), rows, how, near.get());
  const int64_t count = kernels().rank_keys(near.get(), rows, first.get(), sets_of(how), second.get(), runs.get());
  Tensor coords = make<int32_t>(keys, {count, 4}), inverse = make<int64_t>(keys, {rows});
  Tensor counts = make<int64_t>(keys, {count});
  std::fill_n(write<int64_t>(counts), count, 0);
  kernels().take_ranks(near.get(), rows, second.get(), runs.get(), how, write<int64_t>(inverse), write<int64_t>(counts),
                       write<int32_t>(coords));
  return {coords, inverse, counts};
}

template <typename Short>
std::tuple<Tensor, Tensor, Tensor> unique(const Tensor& keys, const ShortKeys& how) {
  const int64_t rows = keys.size(0);
  const SortedKeys<Short> sorted(read<int64_t>(keys, 1, "keys"), rows, how);
  int64_t count = rows > 0;
  for (int64_t i = 1; i < rows; ++i) count += sorted[i].key != sorted[i - 1].key;
  Tensor coords = make<int32_t>(keys, {count, 4}), inverse = make<int64_t>(keys, {rows}), counts = make<int64_t>(keys, {count});
  int64_t* voxel_of = write<int64_t>(inverse);
  int64_t* end = write<int64_t>(counts);
  Short* distinct = sorted.room();
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
  int32_t* voxel = write<int32_t>(coords);
  if constexpr (sizeof(Short) == 4)
    kernels().coords_of(distinct, count, how, voxel);
  else
    for (int64_t v = 0; v < count; ++v) unpack_key(full_key(distinct[v], how), voxel + 4 * v);
  return {coords, inverse, counts};
}

// Distinct keys, ascending, as coords (M, 4) int32; the voxel of every key; how many keys each has.
std::tuple<Tensor, Tensor, Tensor> unique_voxels(Tensor keys) {
  const int64_t* from = read<int64_t>(keys, 1, "keys");
  const int64_t rows = keys.size(0);
  STD_TORCH_CHECK(rows <= INT32_MAX, "too many points");
  const ShortKeys how = how_to_shorten(from, rows);
  if (how.bits <= 32 && sets_of(how) <= rows) return unique_near(keys, how);
  return how.bits <= 32 ? unique<uint32_t>(keys, how) : unique<uint64_t>(keys, how);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("voxel_keys", TORCH_BOX(&voxel_keys));
  m.impl("unique_voxels", TORCH_BOX(&unique_voxels));
}

}  // namespace pcssl
