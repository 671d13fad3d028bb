// The kernels as plain C functions: pointers to memory of the GPU and a stream, no torch. Each queues its work
// and returns a CUDA error code, 0 for none.
#pragma once

#include <cstdint>

namespace pcssl {

enum Element : int { kFloat32, kBfloat16, kFloat16 };      // what numbers are in memory
enum Product : int { kExact, kTf32, kBf16, kFp16 };  // and how they are multiplied

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

int pcssl_cuda_set_device(int device);
const char* pcssl_cuda_error(int code);
}
