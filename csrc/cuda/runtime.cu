// What the operators need of the CUDA runtime.
#include "kernels.h"

#ifndef PCSSL_EMULATE
#include <cuda_runtime.h>

int pcssl_cuda_set_device(int device) { return cudaSetDevice(device); }
const char* pcssl_cuda_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
#else
int pcssl_cuda_set_device(int) { return 0; }
const char* pcssl_cuda_error(int) { return "error of the emulator"; }
#endif
