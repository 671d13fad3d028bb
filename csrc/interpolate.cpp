// Reading a sparse level at points: the voxels around each point with their weights, and sums over them.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "cpu/kernels.h"
#include "keys.h"
#include "tensors.h"

namespace pcssl {
namespace {

// Open addressing. Four keys that differ in the lowest two bits of z share a cache line.
class VoxelHash {
 public:
  VoxelHash(const int64_t* keys, const int64_t* rows, int64_t count) : bits_(3), slots_(size_for(count)) {
    std::fill_n(slots_.get(), int64_t{1} << bits_, Slot{-1, -1});
    for (int64_t i = 0; i < count; ++i) {
      int64_t at = home(keys[i]);
      while (slots_[at].key >= 0) at = next(at);
      slots_[at] = {keys[i], static_cast<int32_t>(rows[i])};
    }
  }

  // The row of a key, -1 where it is absent.
  int32_t find(int64_t key) const {
    int64_t at = home(key);
    while (slots_[at].key != key) {
      if (slots_[at].key < 0) return -1;
      at = next(at);
    }
    return slots_[at].row;
  }

 private:
  struct Slot {
    int64_t key;
    int32_t row;
  };

  int64_t size_for(int64_t count) {
    while ((int64_t{1} << bits_) < 2 * count) ++bits_;
    return int64_t{1} << bits_;
  }
  int64_t next(int64_t at) const { return (at + 1) & ((int64_t{1} << bits_) - 1); }
  int64_t home(int64_t key) const {
    const uint64_t mixed = (static_cast<uint64_t>(key) >> 2) * 0x9E3779B97F4A7C15u;
    return static_cast<int64_t>((mixed >> (66 - bits_)) << 2) | (key & 3);
  }

  int bits_;
  const Scratch<Slot> slots_;
};

enum Mode { kExact, kZero, kNearest };

struct Corners {
  int32_t row[8];
  float weight[8];
};

// The eight voxels around a position, in the order of (x, y, z) with z fastest.
Corners corners_of(const float* position, int64_t batch, const VoxelHash& voxels, int mode) {
  Corners found;
  std::fill_n(found.row, 8, -1);
  std::fill_n(found.weight, 8, 0.0f);
  float low[3], distance[3][2];
  for (int a = 0; a < 3; ++a) {
    low[a] = std::floor(position[a]);
    if (!(low[a] >= static_cast<float>(kLowest - 1) && low[a] <= static_cast<float>(kHighest))) return found;
    distance[a][0] = std::fabs(position[a] - low[a]);
    distance[a][1] = std::fabs(position[a] - low[a] - 1.0f);
  }
  const int64_t x = static_cast<int64_t>(low[0]), y = static_cast<int64_t>(low[1]), z = static_cast<int64_t>(low[2]);
  float sum = 0, nearest = INFINITY;
  int best = -1;
  for (int i = 0; i < 8; ++i) {
    const int dx = i >> 2, dy = (i >> 1) & 1, dz = i & 1;
    if (!in_range(x + dx) || !in_range(y + dy) || !in_range(z + dz)) continue;
    found.row[i] = voxels.find(pack_key(batch, x + dx, y + dy, z + dz));
    if (found.row[i] < 0) continue;
    const float a = distance[0][dx], b = distance[1][dy], c = distance[2][dz];
    found.weight[i] = (1 - a) * (1 - b) * (1 - c);
    sum += found.weight[i];
    const float squared = a * a + b * b + c * c;
    if (squared < nearest) {
      nearest = squared;
      best = i;
    }
  }
  for (int i = 0; i < 8; ++i) {
    if (mode == kExact && sum > 0) found.weight[i] /= sum;
    if (mode == kNearest) found.weight[i] = i == best ? 1.0f : 0.0f;
  }
  return found;
}

// position (P, 3) in voxels, whole numbers at voxel centres; batch (P,) in the range of keys.
// Returns rows (P, 8) int32, -1 where there is no voxel, and weights (P, 8).
std::tuple<Tensor, Tensor> corner_weights(Tensor position, Tensor batch, Tensor sorted_keys, Tensor order, int64_t mode) {
  const float* at = read<float>(position, 2, "position");
  const int64_t* scene = read<int64_t>(batch, 1, "batch");
  const int64_t* keys = read<int64_t>(sorted_keys, 1, "sorted_keys");
  const int64_t* rows = read<int64_t>(order, 1, "order");
  const int64_t points = position.size(0);
  STD_TORCH_CHECK(position.size(1) == 3 && batch.size(0) == points, "position must be (P, 3), batch (P,)");
  STD_TORCH_CHECK(order.size(0) == sorted_keys.size(0), "order and sorted_keys differ in length");
  STD_TORCH_CHECK(order.size(0) <= INT32_MAX, "too many voxels for 32-bit rows");
  Tensor found = make<int32_t>(position, {points, 8}), weights = make<float>(position, {points, 8});
  int32_t* to_rows = write<int32_t>(found);
  float* to_weights = write<float>(weights);
  const VoxelHash voxels(keys, rows, sorted_keys.size(0));
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t p = 0; p < points; ++p) {
    const Corners c = corners_of(at + 3 * p, scene[p], voxels, static_cast<int>(mode));
    std::copy_n(c.row, 8, to_rows + 8 * p);
    std::copy_n(c.weight, 8, to_weights + 8 * p);
  }
  return {found, weights};
}

void check_rows(const int32_t* rows, int64_t count, int64_t limit) {
  int32_t highest = -1;
#pragma omp parallel for num_threads(threads()) schedule(static) reduction(max : highest)
  for (int64_t i = 0; i < count; ++i) highest = std::max(highest, rows[i]);
  STD_TORCH_CHECK(highest < limit, "rows names row ", highest, ", features has ", limit);
}

// out[p] = sum over j of weights[p, j] * features[rows[p, j]].
Tensor weighted_rows(Tensor features, Tensor rows, Tensor weights) {
  const float* from = read<float>(features, 2, "features");
  const int32_t* row = read<int32_t>(rows, 2, "rows");
  const float* weight = read<float>(weights, 2, "weights");
  const int64_t points = rows.size(0), width = rows.size(1), channels = features.size(1);
  STD_TORCH_CHECK(weights.size(0) == points && weights.size(1) == width, "rows and weights differ in shape");
  check_rows(row, points * width, features.size(0));
  Tensor result = make<float>(features, {points, channels});
  float* out = write<float>(result);
  const Kernels& cpu = kernels();
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t p = 0; p < points; ++p) {
    std::fill_n(out + p * channels, channels, 0.0f);
    for (int64_t j = p * width; j < (p + 1) * width; ++j)
      if (row[j] >= 0 && weight[j] != 0) cpu.add_scaled(from + row[j] * channels, weight[j], channels, out + p * channels);
  }
  return result;
}

// The gradient with respect to features (num_rows, C). Entries are grouped by row first, so that
// each row is summed by one thread in the order of the points, deterministic or not.
Tensor weighted_rows_grad(Tensor grad, Tensor rows, Tensor weights, int64_t num_rows, bool) {
  const float* from = read<float>(grad, 2, "grad");
  const int32_t* row = read<int32_t>(rows, 2, "rows");
  const float* weight = read<float>(weights, 2, "weights");
  const int64_t points = rows.size(0), width = rows.size(1), channels = grad.size(1);
  STD_TORCH_CHECK(grad.size(0) == points && weights.size(0) == points && weights.size(1) == width,
                  "grad, rows and weights differ in shape");
  check_rows(row, points * width, num_rows);
  Tensor result = make<float>(grad, {num_rows, channels});
  float* out = write<float>(result);

  std::vector<int64_t> end(num_rows + 1);
  for (int64_t j = 0; j < points * width; ++j)
    if (row[j] >= 0 && weight[j] != 0) ++end[row[j] + 1];
  for (int64_t r = 0; r < num_rows; ++r) end[r + 1] += end[r];
  const Scratch<int64_t> entries(end[num_rows]);
  // Filling moves every start to where the next row starts, its end.
  for (int64_t j = 0; j < points * width; ++j)
    if (row[j] >= 0 && weight[j] != 0) entries[end[row[j]]++] = j;

  const Kernels& cpu = kernels();
#pragma omp parallel for num_threads(threads()) schedule(dynamic, 256)
  for (int64_t r = 0; r < num_rows; ++r) {
    std::fill_n(out + r * channels, channels, 0.0f);
    for (int64_t e = r ? end[r - 1] : 0; e < end[r]; ++e) {
      const int64_t j = entries[e];
      cpu.add_scaled(from + j / width * channels, weight[j], channels, out + r * channels);
    }
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("corner_weights", TORCH_BOX(&corner_weights));
  m.impl("weighted_rows", TORCH_BOX(&weighted_rows));
  m.impl("weighted_rows_grad", TORCH_BOX(&weighted_rows_grad));
}

}  // namespace pcssl
