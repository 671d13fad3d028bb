// Which input voxel each kernel offset of each output voxel reads.
//
// Input keys are sorted, and z is their lowest axis: one binary search finds where the z offsets of a kernel
// column (x, y) begin, and a short walk finds the rest. Threads next to one another search for voxels next to one
// another, mostly in cache. A hash table would need memory, atomics and a look for every one of the offsets.
#include "kernels.h"
#include "search.h"

namespace pcssl {
namespace {

struct Kernel {
  int size, stride, dilation;
  __device__ int64_t offset(int i) const { return int64_t{dilation} * ((size % 2 ? -(size / 2) : 0) + i); }
};

__device__ __forceinline__ int64_t strided_key(int4 voxel, int stride) {
  const int64_t x = int64_t{voxel.y} * stride, y = int64_t{voxel.z} * stride, z = int64_t{voxel.w} * stride;
  return is_scene(voxel.x) && in_range(x) && in_range(y) && in_range(z) ? pack_key(voxel.x, x, y, z) : -1;
}

// Clears *same if outputs and inputs, as many, are not the same voxels in the same rows.
__global__ void compare(const int32_t* __restrict__ coords,  // [N, 4]
                        const int64_t* __restrict__ keys, const int64_t* __restrict__ order,  // [N]
                        int64_t count, int stride, int32_t* same) {
  for (int64_t i = first_item(); i < count; i += item_step()) {
    const int64_t row = order[i];
    if (row < 0 || row >= count || strided_key(reinterpret_cast<const int4*>(coords)[row], stride) != keys[i])
      *same = 0;
  }
}

// The kernel columns from first_column on, one for each blockIdx.y. Where *same, columns before the middle are
// filled with -1, and those behind it enter for every pair the opposite one, which is in the columns before.
__global__ void search(const int32_t* __restrict__ coords,  // [N, 4]
                       int64_t rows, const int64_t* __restrict__ keys, const int64_t* __restrict__ order,  // [M]
                       int64_t inputs, Kernel kernel, int first_column, const int32_t* __restrict__ same,
                       int32_t* table) {  // [K, N]
  const int size = kernel.size, column = first_column + static_cast<int>(blockIdx.y), middle = size * size / 2;
  const int opposite = size * size * size - 1;
  const bool mirror = same && *same;
  for (int64_t i = first_item(); i < rows; i += item_step()) {
    const int4 voxel = reinterpret_cast<const int4*>(coords)[i];
    const int64_t x = int64_t{voxel.y} * kernel.stride + kernel.offset(column / size);
    const int64_t y = int64_t{voxel.z} * kernel.stride + kernel.offset(column % size);
    int64_t z = int64_t{voxel.w} * kernel.stride + kernel.offset(0);
    const bool outside = !is_scene(voxel.x) || !in_range(x) || !in_range(y) || (mirror && column < middle);
    // Keys of z beyond its range belong to other voxels, but are in ascending order too.
    int64_t wanted = outside ? 0 : pack_key(voxel.x, x, y, z);
    int64_t at = outside ? inputs : first_not_below(keys, inputs, wanted);
    for (int k = column * size; k < (column + 1) * size; ++k, z += kernel.dilation, wanted += kernel.dilation) {
      while (at < inputs && keys[at] < wanted) ++at;
      const bool found = at < inputs && keys[at] == wanted && in_range(z);
      const int64_t row = found ? order[at] : -1;
      table[k * rows + i] = static_cast<int32_t>(row);
      if (mirror && column > middle && found) table[(opposite - k) * rows + row] = static_cast<int32_t>(i);
    }
  }
}

}  // namespace
}  // namespace pcssl

// same: one number, not 0, if outputs may be the inputs (as many, and an odd kernel); else null.
int pcssl_cuda_neighbor_table(const int32_t* coords, int64_t rows, const int64_t* keys, const int64_t* order,
                              int64_t inputs, int size, int stride, int dilation, int32_t* same, int32_t* table,
                              void* stream) {
  using namespace pcssl;
  const Kernel kernel{size, stride, dilation};
  const unsigned columns = size * size, before = same ? columns / 2 : 0, blocks = blocks_for(rows);
  if (same) PCSSL_LAUNCH(compare, blocks, kThreads, 0, stream, coords, keys, order, rows, stride, same);
  if (before)
    PCSSL_LAUNCH(search, dim3(blocks, before), kThreads, 0, stream, coords, rows, keys, order, inputs, kernel, 0, same,
                 table);
  PCSSL_LAUNCH(search, dim3(blocks, columns - before), kThreads, 0, stream, coords, rows, keys, order, inputs, kernel,
               static_cast<int>(before), same, table);
  return launch_error();
}
