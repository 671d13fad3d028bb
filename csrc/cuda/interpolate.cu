// Reading a sparse level at points: the voxels around each point with their weights, and sums over them.
#include "elements.h"
#include "search.h"

namespace pcssl {
namespace {

enum Mode { kExact, kZero, kNearest };

// A thread a point. The eight voxels around it are in the order of (x, y, z) with z fastest; -1: none there.
__global__ void corner_weights(const float* __restrict__ position,  // [P, 3], whole numbers at voxel centres
                               const int64_t* __restrict__ batch,   // [P]
                               int64_t points, const int64_t* __restrict__ keys,
                               const int64_t* __restrict__ order,  // [M]
                               int64_t voxels, int mode,
                               int32_t* __restrict__ rows,      // [P, 8]
                               float* __restrict__ weights) {  // [P, 8]
  for (int64_t p = first_item(); p < points; p += item_step()) {
    float low[3], distance[3][2];
    bool inside = is_scene(batch[p]);
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      const float x = position[3 * p + a];
      low[a] = floorf(x);
      inside = inside && low[a] >= static_cast<float>(kLowest - 1) && low[a] <= static_cast<float>(kHighest);
      distance[a][0] = fabsf(x - low[a]);
      distance[a][1] = fabsf(x - low[a] - 1.0f);
    }
    int32_t row[8];
    float weight[8], sum = 0, closest = INFINITY;
    int best = -1;
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const int dx = column >> 1, dy = column & 1;
      const int64_t x = inside ? static_cast<int64_t>(low[0]) + dx : 0;
      const int64_t y = inside ? static_cast<int64_t>(low[1]) + dy : 0;
      const int64_t z = inside ? static_cast<int64_t>(low[2]) : 0;
      const bool searched = inside && in_range(x) && in_range(y);
      const int64_t wanted = searched ? pack_key(batch[p], x, y, z) : 0;
      int64_t at = searched ? first_not_below(keys, voxels, wanted) : voxels;
#pragma unroll
      for (int dz = 0; dz < 2; ++dz) {
        const int i = 2 * column + dz;
        const bool occupied = at < voxels && keys[at] == wanted + dz;
        row[i] = occupied && in_range(z + dz) ? static_cast<int32_t>(order[at]) : -1;
        at += occupied;
        const float a = distance[0][dx], b = distance[1][dy], c = distance[2][dz];
        weight[i] = row[i] < 0 ? 0.0f : (1 - a) * (1 - b) * (1 - c);
        sum += weight[i];
        const float squared = a * a + b * b + c * c;
        if (row[i] >= 0 && squared < closest) {
          closest = squared;
          best = i;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (mode == kExact && sum > 0) weight[i] /= sum;
      if (mode == kNearest) weight[i] = i == best ? 1.0f : 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 4 * half;
      reinterpret_cast<int4*>(rows)[2 * p + half] = make_int4(row[i], row[i + 1], row[i + 2], row[i + 3]);
      reinterpret_cast<float4*>(weights)[2 * p + half] =
          make_float4(weight[i], weight[i + 1], weight[i + 2], weight[i + 3]);
    }
  }
}

// out[p] = sum over j of weights[p, j] * features[rows[p, j]]; what names no row is left out.
template <typename T>
__global__ void weighted_rows(const T* __restrict__ features,  // [M, C]
                              int64_t num_rows, int64_t channels,
                              const int32_t* __restrict__ rows,   // [P, W]
                              const float* __restrict__ weights,  // [P, W]
                              int64_t points, int64_t width, T* __restrict__ out) {  // [P, C]
  for (int64_t p = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; p < points; p += int64_t{gridDim.x} * blockDim.y)
    for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
      float sum = 0;
#pragma unroll 4
      for (int64_t j = p * width; j < (p + 1) * width; ++j) {
        const int64_t row = rows[j];
        const float weight = weights[j];
        if (row >= 0 && row < num_rows && weight != 0) sum += weight * to_float(features[row * channels + c]);
      }
      out[p * channels + c] = from_float<T>(sum);
    }
}

// The transpose of weighted_rows, in the order in which points happen to come.
template <typename T>
__global__ void add_weighted_rows(const T* __restrict__ grad,  // [P, C]
                                  int64_t channels,
                                  const int32_t* __restrict__ rows,   // [P, W]
                                  const float* __restrict__ weights,  // [P, W]
                                  int64_t points, int64_t width, int64_t num_rows, float* sums) {  // [M, C], zeros
  for (int64_t p = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; p < points; p += int64_t{gridDim.x} * blockDim.y)
    for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
      const float g = to_float(grad[p * channels + c]);
      for (int64_t j = p * width; j < (p + 1) * width; ++j) {
        const int64_t row = rows[j];
        const float weight = weights[j];
        if (row >= 0 && row < num_rows && weight != 0) atomicAdd(sums + row * channels + c, weight * g);
      }
    }
}

// The transpose of weighted_rows, in the order of points: a block a row, its entries being those of the sorted rows.
template <typename T>
__global__ void sum_weighted_rows(const T* __restrict__ grad,  // [P, C]
                                  int64_t channels,
                                  const int32_t* __restrict__ sorted_rows,  // [P * W]
                                  const int64_t* __restrict__ order,        // [P * W], the entry of each
                                  const float* __restrict__ weights,        // [P, W]
                                  int64_t points, int64_t width, int64_t num_rows, T* __restrict__ out) {  // [M, C]
  __shared__ float parts[kThreads];
  for (int64_t row = blockIdx.x; row < num_rows; row += gridDim.x) {
    const int64_t first = first_not_below(sorted_rows, points * width, static_cast<int32_t>(row));
    const int64_t last = first_not_below(sorted_rows, points * width, static_cast<int32_t>(row + 1));
    for (int64_t c0 = 0; c0 < channels; c0 += blockDim.x) {  // all threads, for the barriers
      const int64_t c = c0 + threadIdx.x;
      float sum = 0;
      if (c < channels)
        for (int64_t e = first + threadIdx.y; e < last; e += blockDim.y) {
          const int64_t j = order[e];
          if (weights[j] != 0) sum += weights[j] * to_float(grad[j / width * channels + c]);
        }
      parts[threadIdx.y * blockDim.x + threadIdx.x] = sum;
      __syncthreads();
      if (threadIdx.y == 0 && c < channels) {
        for (unsigned y = 1; y < blockDim.y; ++y) sum += parts[y * blockDim.x + threadIdx.x];
        out[row * channels + c] = from_float<T>(sum);
      }
      __syncthreads();
    }
  }
}

}  // namespace
}  // namespace pcssl

using namespace pcssl;

int pcssl_cuda_corner_weights(const float* position, const int64_t* batch, int64_t points, const int64_t* keys,
                              const int64_t* order, int64_t voxels, int mode, int32_t* rows, float* weights,
                              void* stream) {
  PCSSL_LAUNCH(corner_weights, blocks_for(points), kThreads, 0, stream, position, batch, points, keys, order, voxels,
               mode, rows, weights);
  return launch_error();
}

int pcssl_cuda_weighted_rows(int element, const void* features, int64_t num_rows, int64_t channels,
                             const int32_t* rows, const float* weights, int64_t points, int64_t width, void* out,
                             void* stream) {
  const dim3 block = channel_block(channels);
  with_type(element, [&](auto type) {
    using T = decltype(type);
    PCSSL_LAUNCH(weighted_rows<T>, blocks_for(points, block.y), block, 0, stream, static_cast<const T*>(features),
                 num_rows, channels, rows, weights, points, width, static_cast<T*>(out));
  });
  return launch_error();
}

int pcssl_cuda_add_weighted_rows(int element, const void* grad, int64_t channels, const int32_t* rows,
                                 const float* weights, int64_t points, int64_t width, int64_t num_rows, float* sums,
                                 void* stream) {
  const dim3 block = channel_block(channels);
  with_type(element, [&](auto type) {
    using T = decltype(type);
    PCSSL_LAUNCH(add_weighted_rows<T>, blocks_for(points, block.y), block, 0, stream, static_cast<const T*>(grad),
                 channels, rows, weights, points, width, num_rows, sums);
  });
  return launch_error();
}

int pcssl_cuda_sum_weighted_rows(int element, const void* grad, int64_t channels, const int32_t* sorted_rows,
                                 const int64_t* order, const float* weights, int64_t points, int64_t width,
                                 int64_t num_rows, void* out, void* stream) {
  const dim3 block = channel_block(channels);
  with_type(element, [&](auto type) {
    using T = decltype(type);
    PCSSL_LAUNCH(sum_weighted_rows<T>, blocks_for(num_rows, 1), block, 0, stream, static_cast<const T*>(grad), channels,
                 sorted_rows, order, weights, points, width, num_rows, static_cast<T*>(out));
  });
  return launch_error();
}
