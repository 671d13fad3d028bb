#include <tuple>

#include "tensors.h"

namespace pcssl::cuda {
namespace {

constexpr int64_t kMaxOffsets = 1024, kTile = 128;

int offsets_of(const Tensor& table) {
  STD_TORCH_CHECK(table.size(0) <= kMaxOffsets, "the table has ", table.size(0), " offsets, more than ", kMaxOffsets);
  return static_cast<int>(table.size(0));
}

Tensor conv_keys(Tensor table) {
  const int32_t* from = read<int32_t>(table, 2, "table");
  const Launch launch(table);
  const int64_t rows = table.size(1);
  const int offsets = offsets_of(table);
  Tensor counts = make<int32_t>(table, {offsets}), keys = make<int64_t>(table, {parts_of(offsets, 32), rows});
  torch::stable::zero_(counts);
  launch.check(pcssl_cuda_conv_keys(from, rows, offsets, write<int32_t>(counts), write<int64_t>(keys),
                                    launch.stream()));
  return keys;
}

std::tuple<Tensor, Tensor> conv_rows(Tensor table, Tensor order) {
  const int32_t* from = read<int32_t>(table, 2, "table");
  const int64_t* rows_in_order = read<int64_t>(order, 1, "order");
  same_device(table, {&order});
  STD_TORCH_CHECK(order.size(0) == table.size(1), "order has ", order.size(0), " rows, the table ", table.size(1));
  const Launch launch(table);
  const int64_t rows = table.size(1), padded = round_up(rows, kTile);
  const int offsets = offsets_of(table);
  Tensor sorted = make<int32_t>(table, {offsets + 1, padded});
  Tensor masks = make<int32_t>(table, {padded / 32, parts_of(offsets, 32)});
  launch.check(pcssl_cuda_conv_rows(from, rows_in_order, rows, offsets, padded, write<int32_t>(sorted),
                                    write<uint32_t>(masks), launch.stream()));
  return {sorted, masks};
}

}  // namespace

PCSSL_CUDA_OPERATORS(m) {
  m.impl("conv_keys", TORCH_BOX(&conv_keys));
  m.impl("conv_rows", TORCH_BOX(&conv_rows));
}

}  // namespace pcssl::cuda
