// The kernels as plain C functions: pointers to memory of the GPU and a stream, no torch. Each queues its work
// and returns a CUDA error code, 0 for none.
#pragma once

#include <cstdint>

namespace pcssl {

enum Element : int { kFloat32, kBfloat16, kFloat16 };  // what numbers are in memory; sums are float32 for all
enum Product : int { kExact, kTf32, kBf16, kFp16 };    // how the convolution multiplies them

}  // namespace pcssl

extern "C" {

int pcssl_cuda_curve_codes(const int32_t* coords, int64_t rows, bool swap, bool hilbert, int depth, int64_t* codes,
                           void* stream);

// table [K, rows]; counts [K], zeros; keys [ceil(K / 32), rows], the least significant first.
int pcssl_cuda_conv_keys(const int32_t* table, int64_t rows, int offsets, int32_t* counts, int64_t* keys, void* stream);
// sorted [K + 1, padded], masks [padded / 32, ceil(K / 32)]; padded is a multiple of 128.
int pcssl_cuda_conv_rows(const int32_t* table, const int64_t* order, int64_t rows, int offsets, int64_t padded,
                         int32_t* sorted, uint32_t* masks, void* stream);
// weight [K, in, out] at any strides to packed [K, out, width].
int pcssl_cuda_pack_weight(const void* weight, int element, int64_t step_k, int64_t step_in, int64_t step_out,
                           int offsets, int in, int out, int width, int product, bool flip, void* packed,
                           void* stream);
int pcssl_cuda_pad_rows(const void* from, int64_t rows, int bytes, int padded_bytes, void* to, void* stream);
// Rows of features and packed weights are `pieces` times 16 bytes.
int pcssl_cuda_implicit_gemm(const void* features, const void* weight, const float* bias, const int32_t* rows,
                             const uint32_t* masks, int64_t padded, int offsets, int pieces, int channels, int product,
                             void* out, void* stream);
// The number of runs; `sums` has room for as many results where it is more than one.
int pcssl_cuda_weight_gradient_runs(int64_t rows, int offsets, int out, int in);
int pcssl_cuda_weight_gradient(const void* grad, const void* features, const int32_t* table, int64_t rows, int offsets,
                               int out_pieces, int in_pieces, int out, int in, int product, int runs, float* sums,
                               float* result, void* stream);
int pcssl_cuda_bounds(const int32_t* coords, int64_t rows, int64_t* limits, void* stream);
int pcssl_cuda_voxel_keys(const float* points, const int64_t* batch, int64_t rows, float edge, int64_t* keys,
                          int64_t* limits, void* stream);
int pcssl_cuda_run_starts(const int64_t* sorted, int64_t rows, int32_t* starts, void* stream);
int pcssl_cuda_write_voxels(const int64_t* sorted, const int64_t* order, const int64_t* number, int64_t rows,
                            int64_t voxels, int32_t* coords, int64_t* inverse, int64_t* first, int64_t* counts,
                            void* stream);

int pcssl_cuda_neighbor_table(const int32_t* coords, int64_t rows, const int64_t* keys, const int64_t* order,
                              int64_t inputs, int size, int stride, int dilation, int32_t* same, int32_t* table,
                              void* stream);

int pcssl_cuda_segment_reduce(int element, const void* values, int64_t rows, int64_t channels, const int64_t* offsets,
                              int64_t segments, int reduction, void* out, void* stream);
int pcssl_cuda_segment_reduce_grad(int element, const void* grad, const void* values, const void* out, int64_t rows,
                                   int64_t channels, const int64_t* offsets, int64_t segments, int reduction,
                                   void* result, void* stream);

int pcssl_cuda_corner_weights(const float* position, const int64_t* batch, int64_t points, const int64_t* keys,
                              const int64_t* order, int64_t voxels, int mode, int32_t* rows, float* weights,
                              void* stream);
int pcssl_cuda_weighted_rows(int element, const void* features, int64_t num_rows, int64_t channels,
                             const int32_t* rows, const float* weights, int64_t points, int64_t width, void* out,
                             void* stream);
int pcssl_cuda_add_weighted_rows(int element, const void* grad, int64_t channels, const int32_t* rows,
                                 const float* weights, int64_t points, int64_t width, int64_t num_rows, float* sums,
                                 void* stream);
int pcssl_cuda_sum_weighted_rows(int element, const void* grad, int64_t channels, const int32_t* sorted_rows,
                                 const int64_t* order, const float* weights, int64_t points, int64_t width,
                                 int64_t num_rows, void* out, void* stream);

int pcssl_cuda_cell_keys(const float* points, const int64_t* batch, int64_t count, float radius, int64_t* keys,
                         void* stream);
int pcssl_cuda_pack_points(const float* points, const int64_t* batch, const int64_t* order, int64_t count,
                           float* packed, void* stream);
int pcssl_cuda_nearest(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys,
                       const float* packed, int64_t points, float radius, int64_t* index, float* distance,
                       void* stream);
int pcssl_cuda_count_near(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys,
                          const float* packed, int64_t points, float radius, int64_t most, int64_t* counts, int64_t* kept,
                          void* stream);
int pcssl_cuda_list_near(const float* queries, const int64_t* batch, int64_t count, const int64_t* keys,
                         const float* packed, int64_t points, float radius, const int64_t* starts, int64_t* entries,
                         void* stream);
int pcssl_cuda_rank_near(const int64_t* entries, const int64_t* starts, const int64_t* offsets, int64_t count,
                         int64_t* index, void* stream);

int pcssl_cuda_set_device(int device);
const char* pcssl_cuda_error(int code);
}
