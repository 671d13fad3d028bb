// Sum, mean and maximum over runs of rows, and their gradients.
//
// A thread takes one channel of one segment, a warp 32 channels. Where segments are long, a block takes each: its
// warps read every eighth row and join their sums, always in the same order, so results are the same every time.
#include "elements.h"

namespace pcssl {
namespace {

enum Reduction { kSum, kMean, kMax };
constexpr int64_t kLong = 64;  // rows of a mean segment from which on a block works on each

struct Segments {
  const int64_t* offsets;  // [S + 1]
  int64_t count, rows, channels;

  // Offsets are in memory that nobody has looked at yet: whatever they are, only rows are read.
  __device__ int64_t at(int64_t i) const {
    const int64_t row = offsets[i];
    return row < 0 ? 0 : row < rows ? row : rows;
  }
};

__device__ __forceinline__ float join(float sum, float x, bool highest) {
  return !highest ? sum + x : x > sum || x != x ? x : sum;
}

// The sum of x over the warps of a block, for every threadIdx.x, or their maximum.
__device__ float over_block(float x, bool highest) {
  __shared__ float parts[kThreads];
  parts[threadIdx.y * blockDim.x + threadIdx.x] = x;
  __syncthreads();
  x = parts[threadIdx.x];
  for (unsigned y = 1; y < blockDim.y; ++y) x = join(x, parts[y * blockDim.x + threadIdx.x], highest);
  __syncthreads();
  return x;
}

template <bool Whole>  // whether a block works on a segment
__device__ __forceinline__ int64_t first_segment() {
  return Whole ? int64_t{blockIdx.x} : int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
}
template <bool Whole>
__device__ __forceinline__ int64_t segment_step() {
  return int64_t{gridDim.x} * (Whole ? 1 : blockDim.y);
}

template <typename T, bool Whole>
__global__ void reduce(const T* __restrict__ values,  // [N, C]
                       Segments s, int reduction, T* __restrict__ out) {  // [S, C]
  const bool highest = reduction == kMax;
  const int64_t step = Whole ? blockDim.y : 1;
  for (int64_t i = first_segment<Whole>(); i < s.count; i += segment_step<Whole>()) {
    const int64_t first = s.at(i), last = s.at(i + 1);
    for (int64_t c0 = 0; c0 < s.channels; c0 += blockDim.x) {  // all threads, for the barriers
      const int64_t c = c0 + threadIdx.x;
      const bool inside = c < s.channels;
      float sum = highest ? -INFINITY : 0;
      if (inside)
#pragma unroll 4
        for (int64_t row = first + (Whole ? threadIdx.y : 0); row < last; row += step)
          sum = join(sum, to_float(values[row * s.channels + c]), highest);
      if constexpr (Whole) sum = over_block(sum, highest);
      if (last <= first) sum = 0;
      else if (reduction == kMean) sum /= static_cast<float>(last - first);
      if (inside && (!Whole || threadIdx.y == 0)) out[i * s.channels + c] = from_float<T>(sum);
    }
  }
}

// Rows that share a maximum share its gradient.
template <typename T, bool Whole>
__global__ void reduce_grad(const T* __restrict__ grad,    // [S, C]
                            const T* __restrict__ values,  // [N, C]
                            const T* __restrict__ out,     // [S, C]
                            Segments s, int reduction, T* __restrict__ result) {  // [N, C]
  const int64_t step = Whole ? blockDim.y : 1;
  for (int64_t i = first_segment<Whole>(); i < s.count; i += segment_step<Whole>()) {
    const int64_t start = s.at(i), first = start + (Whole ? threadIdx.y : 0), last = s.at(i + 1);
    for (int64_t c0 = 0; c0 < s.channels; c0 += blockDim.x) {
      const int64_t c = c0 + threadIdx.x;
      const bool inside = c < s.channels;
      float among = reduction == kMean ? static_cast<float>(last - start) : 1, top = 0;
      if (reduction == kMax) {
        among = 0;
        top = inside ? to_float(out[i * s.channels + c]) : 0;
        if (inside)
          for (int64_t row = first; row < last; row += step)
            among += to_float(values[row * s.channels + c]) == top ? 1.0f : 0.0f;
        if constexpr (Whole) among = over_block(among, false);
      }
      if (!inside) continue;
      const float share = to_float(grad[i * s.channels + c]) / among;
#pragma unroll 4
      for (int64_t row = first; row < last; row += step) {
        const int64_t at = row * s.channels + c;
        const bool takes = reduction != kMax || to_float(values[at]) == top;
        result[at] = from_float<T>(takes ? share : 0.0f);
      }
    }
  }
}

bool long_segments(const Segments& s) { return s.count > 0 && s.rows / s.count >= kLong; }

}  // namespace
}  // namespace pcssl

using namespace pcssl;

int pcssl_cuda_segment_reduce(int element, const void* values, int64_t rows, int64_t channels, const int64_t* offsets,
                              int64_t segments, int reduction, void* out, void* stream) {
  const Segments s{offsets, segments, rows, channels};
  const dim3 block = channel_block(channels);
  with_type(element, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(values);
    T* to = static_cast<T*>(out);
    if (long_segments(s))
      PCSSL_LAUNCH((reduce<T, true>), blocks_for(segments, 1), block, 0, stream, from, s, reduction, to);
    else
      PCSSL_LAUNCH((reduce<T, false>), blocks_for(segments, block.y), block, 0, stream, from, s, reduction, to);
  });
  return launch_error();
}

int pcssl_cuda_segment_reduce_grad(int element, const void* grad, const void* values, const void* out, int64_t rows,
                                   int64_t channels, const int64_t* offsets, int64_t segments, int reduction,
                                   void* result, void* stream) {
  const Segments s{offsets, segments, rows, channels};
  const dim3 block = channel_block(channels);
  with_type(element, [&](auto type) {
    using T = decltype(type);
    const T *g = static_cast<const T*>(grad), *x = static_cast<const T*>(values), *top = static_cast<const T*>(out);
    T* to = static_cast<T*>(result);
    if (long_segments(s))
      PCSSL_LAUNCH((reduce_grad<T, true>), blocks_for(segments, 1), block, 0, stream, g, x, top, s, reduction, to);
    else
      PCSSL_LAUNCH((reduce_grad<T, false>), blocks_for(segments, block.y), block, 0, stream, g, x, top, s, reduction,
                   to);
  });
  return launch_error();
}
