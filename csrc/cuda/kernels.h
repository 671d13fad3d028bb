// The kernels as plain C functions: pointers to memory of the GPU and a stream, no torch. Each queues its work
// and returns a CUDA error code, 0 for none.
#pragma once

#include <cstdint>

namespace pcssl {

enum Element : int { kFloat32, kBfloat16, kFloat16 };  // what numbers are in memory; sums are float32 for all

}  // namespace pcssl

extern "C" {

int pcssl_cuda_curve_codes(const int32_t* coords, int64_t rows, bool swap, bool hilbert, int depth, int64_t* codes,
                           void* stream);

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
