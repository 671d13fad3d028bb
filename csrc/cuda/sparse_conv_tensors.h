// What the operators of the convolution share: how tensors are stored and multiplied, and rows for asynchronous copies.
#pragma once

#include "tensors.h"

namespace pcssl::cuda {

inline Element element_of(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(on_gpu(x), name, " is not on a GPU");
  switch (x.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBfloat16;
    case ScalarType::Half: return kFloat16;
    default: STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16"); return kFloat32;
  }
}

inline Product product_of(Element element, bool tf32) {
  return element == kFloat32 ? (tf32 ? kTf32 : kExact) : element == kBfloat16 ? kBf16 : kFp16;
}

// (N, C) as rows of whole 16-byte pieces: the tensor itself, or a copy with zeros at the end of its rows.
struct PieceRows {
  PieceRows(const Tensor& x, const char* name, const Launch& launch) : tensor(x), element(element_of(x, name)) {
    STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), name, " must have 2 axes and be contiguous");
    const int64_t bytes = x.size(1) * size();
    STD_TORCH_CHECK(x.size(1) >= 1 && bytes < (1 << 20), name, " has ", x.size(1), " channels");
    pieces = static_cast<int>((bytes + 15) / 16);
    if (bytes % 16 == 0 && reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0) return;
    tensor = torch::stable::new_empty(x, {x.size(0), width()});
    launch.check(pcssl_cuda_pad_rows(x.data_ptr(), x.size(0), static_cast<int>(bytes), pieces * 16, tensor.data_ptr(),
                                     launch.stream()));
  }

  int64_t size() const { return element == kFloat32 ? 4 : 2; }
  int64_t width() const { return pieces * 16 / size(); }

  Tensor tensor;
  Element element;
  int pieces = 0;
};

}  // namespace pcssl::cuda
