// The kernels as plain C functions: pointers to memory of the GPU and a stream, no torch. Each queues its work
// and returns a CUDA error code, 0 for none.
#pragma once

#include <cstdint>

extern "C" {

int pcssl_cuda_curve_codes(const int32_t* coords, int64_t rows, bool swap, bool hilbert, int depth, int64_t* codes,
                           void* stream);

int pcssl_cuda_set_device(int device);
const char* pcssl_cuda_error(int code);
}
