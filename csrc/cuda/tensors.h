// What the operators need of torch on a GPU. With PCSSL_EMULATE the same operators take CPU tensors, under another
// library name, and their kernels run in the emulator.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"
#include "kernels.h"

#ifdef PCSSL_EMULATE
#define PCSSL_CUDA_OPERATORS(m) PCSSL_EXPANDED_IMPL(pcssl_emulated, CPU, m)
#else
#include <dlfcn.h>
#define PCSSL_CUDA_OPERATORS(m) PCSSL_EXPANDED_IMPL(pcssl, CUDA, m)
#endif
#define PCSSL_EXPANDED_IMPL(library, device, m) STABLE_TORCH_LIBRARY_IMPL(library, device, m)

namespace pcssl::cuda {

inline bool on_gpu(const Tensor& x) {
#ifdef PCSSL_EMULATE
  return x.is_cpu();
#else
  return x.is_cuda();
#endif
}

inline const void* read_any(const Tensor& x, int64_t dim, const char* name, bool strided = false) {
  STD_TORCH_CHECK(on_gpu(x), name, " is not on a GPU");
  STD_TORCH_CHECK(x.dim() == dim, name, " must have ", dim, " axes, it has ", x.dim());
  STD_TORCH_CHECK(strided || x.is_contiguous(), name, " is not contiguous");
  return x.data_ptr();
}

// As `pcssl::read`, for a tensor on a GPU.
template <typename T>
const T* read(const Tensor& x, int64_t dim, const char* name, bool strided = false) {
  STD_TORCH_CHECK(x.scalar_type() == TypeOf<T>::value, name, " has the wrong dtype");
  return static_cast<const T*>(read_any(x, dim, name, strided));
}

// Voxels (N, 4) int32, which kernels read as a whole.
inline const int32_t* read_voxels(const Tensor& x, const char* name) {
  const int32_t* voxels = read<int32_t>(x, 2, name);
  STD_TORCH_CHECK(x.size(1) == 4, name, " must be (N, 4)");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(voxels) % 16 == 0, name, " must start at a multiple of 16 bytes");
  return voxels;
}

// Feature rows (N, C) of any element type.
struct Rows {
  Rows(const Tensor& x, const char* name, bool strided = false)
      : data(read_any(x, 2, name, strided)), count(x.size(0)), channels(x.size(1)) {
    const ScalarType type = x.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                    " must be float32, bfloat16 or float16");
    element = type == ScalarType::Float ? kFloat32 : type == ScalarType::BFloat16 ? kBfloat16 : kFloat16;
  }
  const void* data;
  int64_t count, channels;
  Element element;
};

// The device of a tensor and torch's current stream there, for the time of an operator.
class Launch {
 public:
#ifdef PCSSL_EMULATE
  explicit Launch(const Tensor&) {}
#else
  explicit Launch(const Tensor& x) : guard_(x.get_device_index()) {
    check(pcssl_cuda_set_device(x.get_device_index()));
    // Looked up, because a direct reference would keep the library from loading beside a torch without CUDA.
    using Current = int32_t (*)(int32_t, void**);
    static const auto current =
        reinterpret_cast<Current>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    STD_TORCH_CHECK(current && current(x.get_device_index(), &stream_) == 0, "torch names no current CUDA stream");
  }
#endif
  void* stream() const { return stream_; }
  void check(int code) const { STD_TORCH_CHECK(code == 0, "CUDA: ", pcssl_cuda_error(code)); }

 private:
#ifndef PCSSL_EMULATE
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

// All tensors are on the GPU of the first.
inline void same_device(const Tensor& first, std::initializer_list<const Tensor*> others) {
  for (const Tensor* other : others)
    STD_TORCH_CHECK(other->get_device_index() == first.get_device_index(), "tensors are on different GPUs");
}

}  // namespace pcssl::cuda
