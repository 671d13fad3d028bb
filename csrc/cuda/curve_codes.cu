// Positions of voxels along z-order and Hilbert curves, a thread a voxel.
#include "device.h"
#include "kernels.h"

namespace pcssl {
namespace {

// Moves bit i of a 16-bit number to bit 3 i.
__device__ uint64_t spread(uint64_t x) {
  x = (x | (x << 16)) & 0x0000FF0000FF;
  x = (x | (x << 8)) & 0x00F00F00F00F;
  x = (x | (x << 4)) & 0x0C30C30C30C3;
  return (x | (x << 2)) & 0x249249249249;
}

// Skilling's transform ("Programming the Hilbert curve", 2004) of axes to the transposed index.
__device__ void hilbert_transpose(uint32_t (&x)[3], int depth) {
  for (int bit = depth - 1; bit > 0; --bit) {
    const uint32_t below = (1u << bit) - 1;
#pragma unroll
    for (int a = 0; a < 3; ++a) {
      if (x[a] >> bit & 1) {
        x[0] ^= below;
      } else {
        const uint32_t swap = (x[0] ^ x[a]) & below;
        x[0] ^= swap;
        x[a] ^= swap;
      }
    }
  }
  x[1] ^= x[0];
  x[2] ^= x[1];
  uint32_t t = 0;
  for (int bit = depth - 1; bit > 0; --bit)
    if (x[2] >> bit & 1) t ^= (1u << bit) - 1;
  for (int a = 0; a < 3; ++a) x[a] ^= t;
}

__global__ void curve_codes(const int32_t* __restrict__ coords,  // [N, 4]
                            int64_t rows, bool swap, bool hilbert, int depth,
                            int64_t* __restrict__ codes) {  // [N]
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int4 voxel = reinterpret_cast<const int4*>(coords)[i];
    uint32_t x[3] = {static_cast<uint32_t>(swap ? voxel.z : voxel.y), static_cast<uint32_t>(swap ? voxel.y : voxel.z),
                     static_cast<uint32_t>(voxel.w)};
    if (hilbert) hilbert_transpose(x, depth);
    codes[i] = (static_cast<int64_t>(voxel.x) << (3 * depth)) |
               static_cast<int64_t>(spread(x[0]) << 2 | spread(x[1]) << 1 | spread(x[2]));
  }
}

}  // namespace
}  // namespace pcssl

int pcssl_cuda_curve_codes(const int32_t* coords, int64_t rows, bool swap, bool hilbert, int depth, int64_t* codes,
                           void* stream) {
  using namespace pcssl;
  PCSSL_LAUNCH(curve_codes, blocks_for(rows), kThreads, 0, stream, coords, rows, swap, hilbert, depth, codes);
  return launch_error();
}
