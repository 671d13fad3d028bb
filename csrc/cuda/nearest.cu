// Points near to points: hashed into cells a little wider than the radius, and sorted by the keys of their cells.
//
// Three cells that follow one another in z hold points that follow one another too, so around a query nine runs
// are looked through. Cells beyond the range of keys are moved to its edge, which keeps neighbours neighbours.
#include "kernels.h"
#include "search.h"

namespace pcssl {
namespace {

struct Near {
  const float* queries;   // [Q, 3]
  const int64_t* batch;   // [Q]
  int64_t count;
  const int64_t* keys;    // [P], ascending
  const float4* packed;   // [P], x, y, z and index of the points in the order of their keys
  int64_t points;
  float radius;
};

// Wider by more than rounding can move a point in its cell, so that what is near is in a cell that is near.
__device__ __forceinline__ float cell_edge(float radius) { return 1.01f * radius; }

__device__ __forceinline__ int64_t cell_of(float x, float edge) {
  return static_cast<int64_t>(fminf(fmaxf(floorf(x / edge), static_cast<float>(kLowest)), static_cast<float>(kHighest)));
}

__global__ void cell_keys(const float* __restrict__ points,   // [P, 3]
                          const int64_t* __restrict__ batch,  // [P]
                          int64_t count, float radius, int64_t* __restrict__ keys) {  // [P]
  const float edge = cell_edge(radius);
  for (int64_t i = first_item(); i < count; i += item_step())
    keys[i] = is_scene(batch[i]) ? pack_key(batch[i], cell_of(points[3 * i], edge), cell_of(points[3 * i + 1], edge),
                                            cell_of(points[3 * i + 2], edge))
                                 : INT64_MAX;
}

__global__ void pack_points(const float* __restrict__ points,   // [P, 3]
                            const int64_t* __restrict__ batch,  // [P]
                            const int64_t* __restrict__ order,  // [P]
                            int64_t count, float4* __restrict__ packed) {  // [P]
  for (int64_t i = first_item(); i < count; i += item_step()) {
    const int64_t from = order[i];
    // A point of no scene is near to nothing.
    const float x = is_scene(batch[from]) ? points[3 * from] : NAN;
    packed[i] = make_float4(x, points[3 * from + 1], points[3 * from + 2], __int_as_float(static_cast<int>(from)));
  }
}

// Calls visit(squared distance, index) for all points within the radius of query q, in no order.
template <typename F>
__device__ __forceinline__ void for_each_near(const Near& n, int64_t q, F visit) {
  const float px = n.queries[3 * q], py = n.queries[3 * q + 1], pz = n.queries[3 * q + 2];
  const float edge = cell_edge(n.radius);
  const int64_t batch = n.batch[q];
  if (!is_scene(batch)) return;
  const int64_t cx = cell_of(px, edge), cy = cell_of(py, edge), cz = cell_of(pz, edge);
  const int64_t low = cz > kLowest ? cz - 1 : cz, high = cz < kHighest ? cz + 1 : cz;
#pragma unroll 1
  for (int column = 0; column < 9; ++column) {
    const int64_t x = cx + column / 3 - 1, y = cy + column % 3 - 1;
    if (!in_range(x) || !in_range(y)) continue;
    const int64_t last = pack_key(batch, x, y, high);
    for (int64_t at = first_not_below(n.keys, n.points, pack_key(batch, x, y, low));
         at < n.points && n.keys[at] <= last; ++at) {
      const float4 point = n.packed[at];
      const float dx = px - point.x, dy = py - point.y, dz = pz - point.z;
      const float squared = dx * dx + dy * dy + dz * dz;
      if (squared <= n.radius * n.radius) visit(squared, __float_as_int(point.w));
    }
  }
}

__global__ void nearest(Near n, int64_t* __restrict__ index, float* __restrict__ distance) {  // [Q]
  for (int64_t q = first_item(); q < n.count; q += item_step()) {
    float closest = INFINITY;
    int best = -1;
    for_each_near(n, q, [&](float squared, int i) {
      if (best >= 0 && (squared > closest || (squared == closest && i > best))) return;
      closest = squared;
      best = i;
    });
    index[q] = best;
    distance[q] = sqrtf(closest);
  }
}

__global__ void count_near(Near n, int64_t most, int64_t* __restrict__ counts,  // [Q], all
                           int64_t* __restrict__ kept) {                        // [Q], at most `most`
  for (int64_t q = first_item(); q < n.count; q += item_step()) {
    int64_t count = 0;
    for_each_near(n, q, [&](float, int) { ++count; });
    counts[q] = count;
    kept[q] = count < most ? count : most;
  }
}

// Entries are squared distance and index in one number, of which the smaller is the nearer.
__global__ void list_near(Near n, const int64_t* __restrict__ starts,  // [Q + 1]
                          int64_t* __restrict__ entries) {             // [E]
  for (int64_t q = first_item(); q < n.count; q += item_step()) {
    int64_t at = starts[q];
    for_each_near(n, q, [&](float squared, int i) { entries[at++] = (int64_t{__float_as_int(squared)} << 32) | i; });
  }
}

// A warp sorts the entries of a query: the place of an entry is how many are nearer.
__global__ void rank_near(const int64_t* __restrict__ entries,  // [E]
                          const int64_t* __restrict__ starts,   // [Q + 1], of the entries
                          const int64_t* __restrict__ offsets,  // [Q + 1], of those that are kept
                          int64_t count, int64_t* __restrict__ index) {
  for (int64_t q = first_item() / 32; q < count; q += item_step() / 32) {
    const int64_t first = starts[q], last = starts[q + 1], to = offsets[q], kept = offsets[q + 1] - to;
    for (int64_t at = first + threadIdx.x % 32; at < last; at += 32) {
      const int64_t entry = entries[at];
      int64_t place = 0;
      for (int64_t other = first; other < last; ++other) place += entries[other] < entry;
      if (place < kept) index[to + place] = entry & 0xFFFFFFFF;
    }
  }
}

Near near(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys, const float* packed,
          int64_t points, float radius) {
  return {queries, batch, count, keys, reinterpret_cast<const float4*>(packed), points, radius};
}

}  // namespace
}  // namespace pcssl

using namespace pcssl;

int pcssl_cuda_cell_keys(const float* points, const int64_t* batch, int64_t count, float radius, int64_t* keys,
                         void* stream) {
  PCSSL_LAUNCH(cell_keys, blocks_for(count), kThreads, 0, stream, points, batch, count, radius, keys);
  return launch_error();
}

int pcssl_cuda_pack_points(const float* points, const int64_t* batch, const int64_t* order, int64_t count,
                           float* packed, void* stream) {
  PCSSL_LAUNCH(pack_points, blocks_for(count), kThreads, 0, stream, points, batch, order, count,
               reinterpret_cast<float4*>(packed));
  return launch_error();
}

int pcssl_cuda_nearest(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys,
                       const float* packed, int64_t points, float radius, int64_t* index, float* distance,
                       void* stream) {
  const Near n = near(queries, batch, count, keys, packed, points, radius);
  PCSSL_LAUNCH(nearest, blocks_for(count), kThreads, 0, stream, n, index, distance);
  return launch_error();
}

int pcssl_cuda_count_near(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys,
                          const float* packed, int64_t points, float radius, int64_t most, int64_t* counts, int64_t* kept,
                          void* stream) {
  const Near n = near(queries, batch, count, keys, packed, points, radius);
  PCSSL_LAUNCH(count_near, blocks_for(count), kThreads, 0, stream, n, most, counts, kept);
  return launch_error();
}

int pcssl_cuda_list_near(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys,
                         const float* packed, int64_t points, float radius, const int64_t* starts, int64_t* entries,
                         void* stream) {
  const Near n = near(queries, batch, count, keys, packed, points, radius);
  PCSSL_LAUNCH(list_near, blocks_for(count), kThreads, 0, stream, n, starts, entries);
  return launch_error();
}

int pcssl_cuda_rank_near(const int64_t* entries, const int64_t* starts, const int64_t* offsets, int64_t count,
                         int64_t* index, void* stream) {
  PCSSL_LAUNCH(rank_near, blocks_for(32 * count), kThreads, 0, stream, entries, starts, offsets, count, index);
  return launch_error();
}
