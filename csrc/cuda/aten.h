// torch's own operators on the GPU that ours build on.
#pragma once

#include <array>
#include <tuple>

#include "tensors.h"

namespace pcssl::cuda {

inline void call(const char* name, const char* overload, StableIValue* stack) {
  STD_TORCH_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION) == 0, name, " failed");
}

// keys (N,) in ascending order, equal ones in the order they had, and (N,) int64 the place each had.
inline std::tuple<Tensor, Tensor> sort(const Tensor& keys) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  call("aten::sort", "stable", stack.data());
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Running sums (N,) int64 of x (N,).
inline Tensor cumsum(const Tensor& x) {
  using torch::stable::detail::from, torch::stable::detail::to;
  std::array<StableIValue, 3> stack{from(x), from(int64_t{0}), from(std::optional(ScalarType::Long))};
  call("aten::cumsum", "", stack.data());
  return to<Tensor>(stack[0]);
}

// The last of x (N,) int64; waits for the GPU.
inline int64_t last(const Tensor& x) {
  const Tensor one = torch::stable::select(x, 0, x.size(0) - 1);
  int64_t value = 0;
  STD_TORCH_CHECK(aoti_torch_item_int64(one.get(), &value) == 0, "reading a number from the GPU failed");
  return value;
}

}  // namespace pcssl::cuda
