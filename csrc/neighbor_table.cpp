// Which input voxel each kernel offset of each output voxel reads.
//
// Both sides are walked in the order of their keys: shifting all output voxels by one offset
// keeps their order, so the matches of an offset are found by one merge, without a hash table.
// Voxels that differ only in z are neighbours in that order, so one merge serves all z offsets
// of a kernel column.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/kernels.h"
#include "keys.h"
#include "radix_sort.h"
#include "tensors.h"

namespace pcssl {
namespace {

struct Side {  // voxels in ascending order of their keys, and the row of each
  const int64_t* keys;
  const int32_t* rows;
  int64_t count;
};

struct Kernel {
  int size, stride, dilation;
  int low() const { return size % 2 ? -(size / 2) : 0; }
  int offset(int i) const { return dilation * (low() + i); }
};

// (2, 4) int64: lowest and highest value of every column of coords (N, 4); N > 0.
Tensor bounds(Tensor coords) {
  const int32_t* from = read<int32_t>(coords, 2, "coords");
  const int64_t rows = coords.size(0);
  STD_TORCH_CHECK(rows > 0 && coords.size(1) == 4, "coords must be (N, 4) with N > 0");
  int32_t low[4], high[4];
  std::fill_n(low, 4, INT32_MAX);
  std::fill_n(high, 4, INT32_MIN);
  kernels().coord_bounds(from, rows, low, high);
  Tensor result = make<int64_t>(coords, {2, 4});
  std::copy_n(low, 4, write<int64_t>(result));
  std::copy_n(high, 4, write<int64_t>(result) + 4);
  return result;
}

// Keys of coords * stride in the order of rows; whether all offsets of the kernel stay in range.
bool base_keys(const int32_t* coords, int64_t rows, const Kernel& kernel, int64_t* keys) {
  const int64_t below = std::min(0, kernel.offset(0)), above = std::max(0, kernel.offset(kernel.size - 1));
  bool valid = true, inside = true;
#pragma omp parallel for num_threads(threads()) schedule(static) reduction(&& : valid, inside)
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t* c = coords + 4 * i;
    const int64_t x = int64_t{c[1]} * kernel.stride, y = int64_t{c[2]} * kernel.stride, z = int64_t{c[3]} * kernel.stride;
    const int64_t low = std::min({x, y, z}), high = std::max({x, y, z});
    valid = valid && c[0] >= 0 && c[0] <= kMaxBatch && in_range(low) && in_range(high);
    inside = inside && in_range(low + below) && in_range(high + above);
    keys[i] = pack_key(c[0], x, y, z);
  }
  STD_TORCH_CHECK(valid, "voxel coordinates are out of the range of keys");
  return inside;
}

// One kernel column (x, y) over the output voxels first..last of `out`: K z offsets at once.
// K: the kernel's size where the compiler should know it, else 0. Mirror: also enter the
// opposite offset of every pair found, for maps from a voxel set to itself.
template <int K, bool Mirror>
void merge_column(const Side& out, const Side& in, const Kernel& kernel, int column, int64_t first, int64_t last,
                  int32_t* table) {
  const int size = K ? K : kernel.size, opposite = size * size * size - 1;
  const int64_t start = key_step(kernel.offset(column / size), kernel.offset(column % size), kernel.offset(0));
  int32_t* const entries = table + static_cast<int64_t>(column) * size * out.count;
  int32_t unused;
  int64_t at = std::lower_bound(in.keys, in.keys + in.count, out.keys[first] + start) - in.keys;
  for (int64_t i = first; i < last; ++i) {
    int64_t wanted = out.keys[i] + start;
    while (in.keys[at] < wanted) ++at;
    const int64_t row = out.rows[i];
    const int32_t back = in.rows[i < in.count ? i : 0];
    int64_t next = at;
    for (int z = 0; z < size; ++z, wanted += kernel.dilation) {
      if (kernel.dilation > 1)
        while (in.keys[next] < wanted) ++next;
      const bool found = in.keys[next] == wanted;
      entries[z * out.count + row] = found ? in.rows[next] : -1;
      if constexpr (Mirror) {
        // No branch: whether a neighbour exists is a coin flip to the CPU.
        int32_t* const mirrored = table + (opposite - column * size - z) * out.count;
        *(found ? mirrored + out.rows[next] : &unused) = back;
      }
      next += found;
    }
  }
}

template <int K>
void merge(const Side& out, const Side& in, const Kernel& kernel, bool mirror, int32_t* table) {
  const int columns = kernel.size * kernel.size, middle = columns / 2;
  const int64_t runs = std::min<int64_t>(4 * threads(), parts_of(out.count, 1024));
  if (mirror) std::fill_n(table, static_cast<int64_t>(middle) * kernel.size * out.count, -1);
#pragma omp parallel for collapse(2) num_threads(threads()) schedule(dynamic)
  for (int column = mirror ? middle : 0; column < columns; ++column)
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = cut(out.count, runs, run), last = cut(out.count, runs, run + 1);
      if (mirror && column > middle)
        merge_column<K, true>(out, in, kernel, column, first, last, table);
      else
        merge_column<K, false>(out, in, kernel, column, first, last, table);
    }
}

// For voxels at the edge of the range, where a shifted key may belong to another voxel.
void search_each(const int32_t* coords, int64_t rows, const Side& in, const Kernel& kernel, int32_t* table) {
  const int size = kernel.size;
#pragma omp parallel for num_threads(threads()) schedule(static)
  for (int64_t i = 0; i < rows; ++i)
    for (int k = 0; k < size * size * size; ++k) {
      const int32_t* c = coords + 4 * i;
      const int64_t x = int64_t{c[1]} * kernel.stride + kernel.offset(k / size / size);
      const int64_t y = int64_t{c[2]} * kernel.stride + kernel.offset(k / size % size);
      const int64_t z = int64_t{c[3]} * kernel.stride + kernel.offset(k % size);
      int32_t row = -1;
      if (in_range(x) && in_range(y) && in_range(z)) {
        const int64_t key = pack_key(c[0], x, y, z);
        const int64_t at = std::lower_bound(in.keys, in.keys + in.count, key) - in.keys;
        if (in.keys[at] == key) row = in.rows[at];
      }
      table[k * rows + i] = row;
    }
}

// Output voxels in the order of their keys.
class SortedOutputs {
 public:
  SortedOutputs(const int64_t* keys, int64_t count, const Side& in) : rows_(count), keys_(count) {
    if (same_voxels(keys, count, in)) {
      same_ = true;
      side_ = {in.keys, in.rows, count};
      return;
    }
    side_ = {keys, rows_.get(), count};
    if (std::is_sorted(keys, keys + count)) {
      for (int64_t i = 0; i < count; ++i) rows_[i] = static_cast<int32_t>(i);
      return;
    }
    const Scratch<KeyRow<int64_t>> pairs(count), spare(count);
    sort_by_key(keys, count, 0, pairs.get(), spare.get());
    for (int64_t i = 0; i < count; ++i) {
      keys_[i] = pairs[i].key;
      rows_[i] = pairs[i].row;
    }
    side_.keys = keys_.get();
  }

  const Side& side() const { return side_; }
  bool same_as_input() const { return same_; }

 private:
  // Whether outputs and inputs are the same voxels in the same rows.
  static bool same_voxels(const int64_t* keys, int64_t count, const Side& in) {
    if (count != in.count) return false;
    for (int64_t i = 0; i < count; ++i)
      if (keys[in.rows[i]] != in.keys[i]) return false;
    return true;
  }

  const Scratch<int32_t> rows_;
  const Scratch<int64_t> keys_;
  Side side_{};
  bool same_ = false;
};

Tensor neighbor_table(Tensor out_coords, Tensor sorted_keys, Tensor order, int64_t size, int64_t stride,
                      int64_t dilation) {
  const int32_t* coords = read<int32_t>(out_coords, 2, "out_coords");
  const int64_t* keys = read<int64_t>(sorted_keys, 1, "sorted_keys");
  const int64_t* order_of = read<int64_t>(order, 1, "order");
  const int64_t rows = out_coords.size(0), inputs = sorted_keys.size(0);
  STD_TORCH_CHECK(out_coords.size(1) == 4, "out_coords must be (N, 4)");
  STD_TORCH_CHECK(order.size(0) == inputs, "order and sorted_keys differ in length");
  STD_TORCH_CHECK(rows <= INT32_MAX && inputs <= INT32_MAX, "too many voxels for 32-bit rows");
  STD_TORCH_CHECK(size >= 1 && size <= 64 && stride >= 1 && dilation >= 1 && dilation <= 4096, "bad kernel");
  const Kernel kernel{static_cast<int>(size), static_cast<int>(stride), static_cast<int>(dilation)};

  Tensor result = make<int32_t>(out_coords, {size * size * size, rows});
  int32_t* table = write<int32_t>(result);
  if (rows == 0) return result;

  // Padded so that a merge may run over the end.
  const Scratch<int64_t> padded(inputs + size + 1);
  const Scratch<int32_t> in_rows(inputs + size + 1);
  std::copy_n(keys, inputs, padded.get());
  std::fill_n(padded.get() + inputs, size + 1, INT64_MAX);
  bool valid = true;
  for (int64_t i = 0; i < inputs; ++i) {
    valid = valid && order_of[i] >= 0 && order_of[i] < inputs;
    in_rows[i] = static_cast<int32_t>(order_of[i]);
  }
  STD_TORCH_CHECK(valid, "order names rows that do not exist");
  std::fill_n(in_rows.get() + inputs, size + 1, -1);
  const Side in{padded.get(), in_rows.get(), inputs};

  const Scratch<int64_t> base(rows);
  if (!base_keys(coords, rows, kernel, base.get())) {
    search_each(coords, rows, in, kernel, table);
    return result;
  }
  const SortedOutputs out(base.get(), rows, in);
  const bool mirror = out.same_as_input() && size % 2 == 1;
  switch (size) {
    case 2: merge<2>(out.side(), in, kernel, mirror, table); break;
    case 3: merge<3>(out.side(), in, kernel, mirror, table); break;
    default: merge<0>(out.side(), in, kernel, mirror, table);
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("bounds", TORCH_BOX(&bounds));
  m.impl("neighbor_table", TORCH_BOX(&neighbor_table));
}

}  // namespace pcssl
