// Kernels over the channels of feature rows, for every element type.
#pragma once

#include "device.h"
#include "kernels.h"

namespace pcssl {

// Calls run(T{}) with the type that `element` names.
template <typename F>
void with_type(int element, F run) {
  if (element == kBfloat16) run(bf16{});
  else if (element == kFloat16) run(fp16{});
  else run(float{});
}

// threadIdx.x walks the channels of a row, so that a warp reads what lies together; threadIdx.y is the row.
inline dim3 channel_block(int64_t channels) {
  unsigned width = 1;
  while (width < 32 && width < channels) width *= 2;
  return dim3(width, kThreads / width);
}

}  // namespace pcssl
