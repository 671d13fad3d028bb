#include "aten.h"

namespace pcssl::cuda {
namespace {

Tensor bounds(Tensor coords) {
  const int32_t* from = read_voxels(coords, "coords");
  STD_TORCH_CHECK(coords.size(0) > 0, "coords must be (N, 4) with N > 0");
  const Launch launch(coords);
  Tensor result = make<int64_t>(coords, {2, 4});
  launch.check(pcssl_cuda_bounds(from, coords.size(0), write<int64_t>(result), launch.stream()));
  return result;
}

std::tuple<Tensor, Tensor> voxel_keys(Tensor points, double size, Tensor batch) {
  const float* xyz = read<float>(points, 2, "points");
  const int64_t* scene = read<int64_t>(batch, 1, "batch");
  const int64_t rows = points.size(0);
  STD_TORCH_CHECK(points.size(1) == 3 && batch.size(0) == rows, "points must be (N, 3), batch (N,)");
  same_device(points, {&batch});
  const Launch launch(points);
  Tensor keys = make<int64_t>(points, {rows}), limits = make<int64_t>(points, {2, 4});
  launch.check(pcssl_cuda_voxel_keys(xyz, scene, rows, static_cast<float>(size), write<int64_t>(keys),
                                     write<int64_t>(limits), launch.stream()));
  return {keys, limits};
}

std::tuple<Tensor, Tensor, Tensor> unique_voxels(Tensor keys) {
  read<int64_t>(keys, 1, "keys");
  const int64_t rows = keys.size(0);
  STD_TORCH_CHECK(rows < INT32_MAX, "too many points");
  const Launch launch(keys);
  Tensor inverse = make<int64_t>(keys, {rows});
  if (rows == 0) return {make<int32_t>(keys, {0, 4}), inverse, make<int64_t>(keys, {0})};
  const auto [sorted, order] = sort(keys);
  const Tensor starts = make<int32_t>(keys, {rows});
  launch.check(pcssl_cuda_run_starts(write<int64_t>(sorted), rows, write<int32_t>(starts), launch.stream()));
  const Tensor number = cumsum(starts);
  const int64_t voxels = last(number);
  Tensor coords = make<int32_t>(keys, {voxels, 4}), counts = make<int64_t>(keys, {voxels});
  const Tensor first = make<int64_t>(keys, {voxels});
  launch.check(pcssl_cuda_write_voxels(write<int64_t>(sorted), write<int64_t>(order), write<int64_t>(number), rows,
                                       voxels, write<int32_t>(coords), write<int64_t>(inverse), write<int64_t>(first),
                                       write<int64_t>(counts), launch.stream()));
  return {coords, inverse, counts};
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) {
  m.impl("bounds", TORCH_BOX(&bounds));
  m.impl("voxel_keys", TORCH_BOX(&voxel_keys));
  m.impl("unique_voxels", TORCH_BOX(&unique_voxels));
}

}  // namespace pcssl::cuda
