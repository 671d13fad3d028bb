// What a kernel file includes first. It is CUDA to nvcc; to a C++ compiler with PCSSL_EMULATE it is
// the emulator, which runs the same kernels on the CPU for tests.
#pragma once

#ifdef PCSSL_EMULATE
#include "../emulator/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Launches on `stream`; dynamic_bytes of shared memory are had with PCSSL_DYNAMIC_SHARED.
#define PCSSL_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...) \
  kernel<<<grid, block, dynamic_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define PCSSL_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define PCSSL_ALLOW_SHARED(kernel, bytes) \
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))
#endif

#include <cstdint>
#include <type_traits>

namespace pcssl {

#ifndef PCSSL_EMULATE
using bf16 = __nv_bfloat16;
using fp16 = __half;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4) return x;
  else if constexpr (std::is_same_v<T, bf16>) return __float2bfloat16_rn(x);
  else return __float2half_rn(x);
}
#endif

// What the launch before said; it also clears the error.
inline int launch_error() {
#ifdef PCSSL_EMULATE
  return 0;
#else
  return cudaGetLastError();
#endif
}

constexpr int kThreads = 256;  // of a block, where one thread does one item

// Blocks for `items` items; a kernel walks what is left with a stride of the whole grid.
inline unsigned blocks_for(int64_t items, int threads = kThreads) {
  const int64_t blocks = (items + threads - 1) / threads;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < (int64_t{1} << 30) ? blocks : int64_t{1} << 30);
}

// The items of this thread: for (int64_t i = first_item(); i < count; i += item_step())
__device__ __forceinline__ int64_t first_item() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t item_step() { return int64_t{gridDim.x} * blockDim.x; }

}  // namespace pcssl
