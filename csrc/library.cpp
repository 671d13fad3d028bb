// The operators and their signatures; implementations register themselves in their own files.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pcssl, m) {
  // back: the table of the transposed map, for the gradient; none where `table` flipped is that table.
  m.def("sparse_conv(Tensor features, Tensor weight, Tensor? bias, Tensor table, Tensor? back, bool flip) -> Tensor");
  m.def("sparse_conv_weight_grad(Tensor features, Tensor grad, Tensor table) -> Tensor");
  m.def("bounds(Tensor coords) -> Tensor");
  m.def("neighbor_table(Tensor out_coords, Tensor sorted_keys, Tensor order, int size, int stride, int dilation) -> Tensor");
  m.def("voxel_keys(Tensor points, float size, Tensor batch) -> (Tensor, Tensor)");
  m.def("unique_voxels(Tensor keys) -> (Tensor, Tensor, Tensor)");
  m.def("curve_codes(Tensor coords, bool swap, bool hilbert, int depth) -> Tensor");
  m.def("segment_reduce(Tensor values, Tensor offsets, int reduction) -> Tensor");
  m.def("segment_reduce_grad(Tensor grad, Tensor values, Tensor out, Tensor offsets, int reduction) -> Tensor");
  m.def("corner_weights(Tensor position, Tensor batch, Tensor sorted_keys, Tensor order, int mode) -> (Tensor, Tensor)");
  m.def("weighted_rows(Tensor features, Tensor rows, Tensor weights) -> Tensor");
  m.def("weighted_rows_grad(Tensor grad, Tensor rows, Tensor weights, SymInt num_rows) -> Tensor");
  m.def("nearest(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch, float radius) "
        "-> (Tensor, Tensor)");
  m.def("radius_neighbors(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch, float radius, "
        "int k) -> (Tensor, Tensor)");
}
