// The operators and their signatures; implementations register themselves in their own files.
#include <torch/csrc/stable/library.h>

#ifdef PCSSL_EMULATE
#define PCSSL_LIBRARY pcssl_emulated  // the CUDA operators on the CPU, for tests
#else
#define PCSSL_LIBRARY pcssl
#endif
#define PCSSL_EXPANDED(library, m) STABLE_TORCH_LIBRARY(library, m)

PCSSL_EXPANDED(PCSSL_LIBRARY, m) {
  // back: the table of the transposed map, for the gradient; none where `table` flipped is that table.
  m.def("sparse_conv(Tensor features, Tensor weight, Tensor? bias, Tensor table, Tensor? back, bool flip) -> Tensor");
  m.def("sparse_conv_weight_grad(Tensor features, Tensor grad, Tensor table) -> Tensor");
  // CUDA. plan: a table, its columns sorted, the masks of their tiles; back: that of the transposed map.
  m.def("implicit_gemm(Tensor features, Tensor weight, Tensor? bias, Tensor[] plan, Tensor[] back, bool flip, bool tf32) -> Tensor");
  m.def("implicit_gemm_weight_grad(Tensor features, Tensor grad, Tensor table, bool tf32) -> Tensor");
  m.def("conv_keys(Tensor table) -> Tensor");
  m.def("conv_rows(Tensor table, Tensor order) -> (Tensor, Tensor)");
  m.def("bounds(Tensor coords) -> Tensor");
  m.def("neighbor_table(Tensor out_coords, Tensor sorted_keys, Tensor order, int size, int stride, int dilation) -> Tensor");
  m.def("voxel_keys(Tensor points, float size, Tensor batch) -> (Tensor, Tensor)");
  m.def("unique_voxels(Tensor keys) -> (Tensor, Tensor, Tensor)");
  m.def("curve_codes(Tensor coords, bool swap, bool hilbert, int depth) -> Tensor");
  m.def("segment_reduce(Tensor values, Tensor offsets, int reduction) -> Tensor");
  m.def("segment_reduce_grad(Tensor grad, Tensor values, Tensor out, Tensor offsets, int reduction) -> Tensor");
  m.def("corner_weights(Tensor position, Tensor batch, Tensor sorted_keys, Tensor order, int mode) -> (Tensor, Tensor)");
  m.def("weighted_rows(Tensor features, Tensor rows, Tensor weights) -> Tensor");
  m.def("displace(Tensor points, Tensor field, Tensor low, float spacing) -> Tensor");
  m.def("scatter_sum(Tensor values, Tensor index, int size) -> Tensor");
  m.def("weighted_rows_grad(Tensor grad, Tensor rows, Tensor weights, SymInt num_rows, bool deterministic) "
        "-> Tensor");
  m.def("nearest(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch, float radius) "
        "-> (Tensor, Tensor)");
  m.def("radius_neighbors(Tensor queries, Tensor query_batch, Tensor points, Tensor point_batch, float radius, "
        "int k) -> (Tensor, Tensor)");
}

#ifndef PCSSL_CUDA_ARCHITECTURES
#define PCSSL_CUDA_ARCHITECTURES ""
#endif

// The GPU architectures that there is machine code for, "80,86,..."; the last of them also in a form that newer
// GPUs take. Empty without CUDA.
extern "C" __attribute__((visibility("default"))) const char* pcssl_cuda_architectures() {
  return PCSSL_CUDA_ARCHITECTURES;
}
