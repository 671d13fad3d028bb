// Points to voxels: keys of points, bounds of coordinates, and the runs of equal keys among sorted ones.
#include "device.h"
#include "kernels.h"
#include "../keys.h"

namespace pcssl {
namespace {

constexpr int kWarps = kThreads / 32;

__global__ void reset_limits(int64_t* limits) {  // [2, 4]
  limits[threadIdx.x] = threadIdx.x < 4 ? INT64_MAX : INT64_MIN;
}

// Widens limits [2, 4] to the lowest and highest that the threads of a block have seen.
__device__ void widen(const int64_t (&low)[4], const int64_t (&high)[4], int64_t* limits) {
  __shared__ int64_t seen[8][kWarps];
#pragma unroll
  for (int a = 0; a < 8; ++a) {
    int64_t x = a < 4 ? low[a & 3] : high[a & 3];
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
      const int64_t other = __shfl_xor_sync(~0u, x, lanes);
      x = (other < x) == (a < 4) ? other : x;
    }
    if (threadIdx.x % 32 == 0) seen[a][threadIdx.x / 32] = x;
  }
  __syncthreads();
  if (threadIdx.x >= 8) return;
  const bool lowest = threadIdx.x < 4;
  long long x = seen[threadIdx.x][0];
  for (int warp = 1; warp < kWarps; ++warp) {
    const long long other = seen[threadIdx.x][warp];
    x = (other < x) == lowest ? other : x;
  }
  long long* const at = reinterpret_cast<long long*>(limits + threadIdx.x);
  if (lowest) atomicMin(at, x);
  else atomicMax(at, x);
}

__global__ void bounds(const int32_t* __restrict__ coords,  // [N, 4]
                       int64_t rows, int64_t* limits) {     // [2, 4]
  int64_t low[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
  int64_t high[4] = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int4 voxel = reinterpret_cast<const int4*>(coords)[i];
    const int64_t at[4] = {voxel.x, voxel.y, voxel.z, voxel.w};
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      low[a] = at[a] < low[a] ? at[a] : low[a];
      high[a] = at[a] > high[a] ? at[a] : high[a];
    }
  }
  widen(low, high, limits);
}

// Keys of floor(points / edge), which mean nothing where limits leave the range of keys; points that
// are not finite put INT64_MIN into the limits.
__global__ void voxel_keys(const float* __restrict__ points,   // [N, 3]
                           const int64_t* __restrict__ batch,  // [N]
                           int64_t rows, float edge,
                           int64_t* __restrict__ keys,  // [N]
                           int64_t* limits) {           // [2, 4]
  int64_t low[4] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
  int64_t high[4] = {INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    int64_t voxel[4] = {batch[i], 0, 0, 0};
    bool finite = true;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const float x = points[3 * i + a];
      finite = finite && fabsf(x) < INFINITY;
      // Far outside is far outside: a float of any size must not overflow the integer.
      if (fabsf(x) < INFINITY) voxel[a + 1] = static_cast<int64_t>(fminf(fmaxf(floorf(x / edge), -1e15f), 1e15f));
    }
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      low[a] = !finite ? INT64_MIN : voxel[a] < low[a] ? voxel[a] : low[a];
      high[a] = voxel[a] > high[a] ? voxel[a] : high[a];
    }
    uint64_t key = voxel[0];
#pragma unroll
    for (int a = 1; a < 4; ++a) key = (key << kAxisBits) + static_cast<uint64_t>(voxel[a] - kLowest);
    keys[i] = static_cast<int64_t>(key);
  }
  widen(low, high, limits);
}

__global__ void run_starts(const int64_t* __restrict__ sorted,  // [N]
                           int64_t rows, int32_t* __restrict__ starts) {  // [N], 1 where a run of equal keys starts
  for (int64_t i = first_item(); i < rows; i += item_step()) starts[i] = i == 0 || sorted[i] != sorted[i - 1];
}

__global__ void write_voxels(const int64_t* __restrict__ sorted,  // [N]
                             const int64_t* __restrict__ order,   // [N], the point of every sorted key
                             const int64_t* __restrict__ number,  // [N], runs started so far
                             int64_t rows,
                             int32_t* __restrict__ coords,    // [M, 4]
                             int64_t* __restrict__ inverse,   // [N]
                             int64_t* __restrict__ first) {   // [M], where the run of every voxel starts
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int64_t voxel = number[i] - 1;
    inverse[order[i]] = voxel;
    if (i != 0 && number[i - 1] - 1 == voxel) continue;
    constexpr int64_t mask = (1 << kAxisBits) - 1;
    const int64_t key = sorted[i];
    reinterpret_cast<int4*>(coords)[voxel] =
        make_int4(static_cast<int>(key >> (3 * kAxisBits)), static_cast<int>(((key >> (2 * kAxisBits)) & mask) + kLowest),
                  static_cast<int>(((key >> kAxisBits) & mask) + kLowest), static_cast<int>((key & mask) + kLowest));
    first[voxel] = i;
  }
}

__global__ void run_lengths(const int64_t* __restrict__ first,  // [M]
                            int64_t voxels, int64_t rows, int64_t* __restrict__ counts) {  // [M]
  for (int64_t v = first_item(); v < voxels; v += item_step())
    counts[v] = (v + 1 < voxels ? first[v + 1] : rows) - first[v];
}

// Few blocks, because each of them ends with atomic operations on the same eight numbers.
unsigned few_blocks(int64_t rows) { return blocks_for(rows < 1024 * kThreads ? rows : 1024 * kThreads); }

}  // namespace
}  // namespace pcssl

using namespace pcssl;

int pcssl_cuda_bounds(const int32_t* coords, int64_t rows, int64_t* limits, void* stream) {
  PCSSL_LAUNCH(reset_limits, 1, 8, 0, stream, limits);
  PCSSL_LAUNCH(bounds, few_blocks(rows), kThreads, 0, stream, coords, rows, limits);
  return launch_error();
}

int pcssl_cuda_voxel_keys(const float* points, const int64_t* batch, int64_t rows, float edge, int64_t* keys,
                          int64_t* limits, void* stream) {
  PCSSL_LAUNCH(reset_limits, 1, 8, 0, stream, limits);
  PCSSL_LAUNCH(voxel_keys, few_blocks(rows), kThreads, 0, stream, points, batch, rows, edge, keys, limits);
  return launch_error();
}

int pcssl_cuda_run_starts(const int64_t* sorted, int64_t rows, int32_t* starts, void* stream) {
  PCSSL_LAUNCH(run_starts, blocks_for(rows), kThreads, 0, stream, sorted, rows, starts);
  return launch_error();
}

int pcssl_cuda_write_voxels(const int64_t* sorted, const int64_t* order, const int64_t* number, int64_t rows,
                            int64_t voxels, int32_t* coords, int64_t* inverse, int64_t* first, int64_t* counts,
                            void* stream) {
  PCSSL_LAUNCH(write_voxels, blocks_for(rows), kThreads, 0, stream, sorted, order, number, rows, coords, inverse,
               first);
  PCSSL_LAUNCH(run_lengths, blocks_for(voxels), kThreads, 0, stream, first, voxels, rows, counts);
  return launch_error();
}
