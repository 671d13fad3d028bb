// Sparse convolution over a table (K, N_out) of input rows, -1 where there is none.
//
// Output rows are worked on in blocks whose sums stay in the L2 cache. For every kernel offset,
// the input rows that exist are multiplied with the weights of that offset. Every output row is
// summed by one thread in the order of the offsets, so results do not depend on the number of
// threads or the size of blocks.
#include <algorithm>
#include <atomic>
#include <numeric>
#include <optional>
#include <vector>

#include "cpu/kernels.h"
#include "tensors.h"

namespace pcssl {
namespace {

constexpr int64_t kCache = 768 << 10;  // bytes of a thread's sums and features: most of a 1 MB L2 cache
constexpr int64_t kSums = 6 << 20;     // bytes of a thread's sums for the gradient of the weight

struct Weight {  // [k][in][out] at any strides
  const float* data;
  int64_t offsets, in, out, step_k, step_in, step_out;
};

Weight view(const Tensor& weight) {
  const float* data = read<float>(weight, 3, "weight", true);
  return {data,           weight.size(0),   weight.size(1),  weight.size(2),
          weight.stride(0), weight.stride(1), weight.stride(2)};
}

// To [k][strip][in][strip columns], padded with zeros.
void pack(const Weight& w, int strip, float* packed, int threads) {
  const int64_t strips = parts_of(w.out, strip);
#pragma omp parallel for collapse(2) num_threads(threads) schedule(static)
  for (int64_t k = 0; k < w.offsets; ++k)
    for (int64_t s = 0; s < strips; ++s) {
      float* to = packed + (k * strips + s) * w.in * strip;
      const float* from = w.data + k * w.step_k + s * strip * w.step_out;
      const int64_t width = std::min<int64_t>(strip, w.out - s * strip);
      // Steps of 16 inputs: both sides of the transposition stay in the cache.
      for (int64_t first = 0; first < w.in; first += 16)
        for (int64_t o = 0; o < strip; ++o)
          for (int64_t i = first; i < std::min<int64_t>(first + 16, w.in); ++i)
            to[i * strip + o] = o < width ? from[i * w.step_in + o * w.step_out] : 0.0f;
    }
}

// Asks for a run of the table ahead of its use: it is too short for the CPU to see it coming.
void fetch(const int32_t* table, int64_t size) {
  for (int64_t i = 0; i < size; i += 16) __builtin_prefetch(table + i);
}

bool rows_within(const int32_t* rows, int count, int64_t limit) {
  int32_t highest = -1;
  for (int i = 0; i < count; ++i) highest = std::max(highest, rows[i]);
  return highest < limit;
}

int64_t block_rows(int64_t in, int64_t out, int64_t rows, int threads) {
  const int64_t fitting = std::clamp<int64_t>(kCache / (4 * (in + out)), 96, 2048);
  return std::max<int64_t>(48, std::min(fitting, parts_of(rows, 4 * threads)));
}

// features (N_in, C_in), weight (K, C_in, C_out), bias (C_out,) or none, table (K, N_out).
// flip: read the table's offsets from the last to the first, which turns the table of a
// submanifold map into the one of its transpose.
Tensor sparse_conv(Tensor features, Tensor weight, std::optional<Tensor> bias, Tensor table, std::optional<Tensor>,
                   bool flip) {
  const float* in = read<float>(features, 2, "features");
  const int32_t* map = read<int32_t>(table, 2, "table");
  const float* start = bias ? read<float>(*bias, 1, "bias") : nullptr;
  const Weight w = view(weight);
  STD_TORCH_CHECK(features.size(1) == w.in, "features have ", features.size(1), " channels, weight wants ", w.in);
  STD_TORCH_CHECK(table.size(0) == w.offsets, "table has ", table.size(0), " offsets, weight ", w.offsets);
  STD_TORCH_CHECK(!bias || bias->size(0) == w.out, "bias has ", bias->size(0), " channels, weight ", w.out);

  const int64_t rows = table.size(1), num_in = features.size(0);
  Tensor result = make<float>(features, {rows, w.out});
  float* out = write<float>(result);
  if (rows == 0 || w.out == 0) return result;

  const Kernels& cpu = kernels();
  const int workers = threads();
  const int64_t strips = parts_of(w.out, cpu.strip), ld = round_up(w.out, cpu.lanes);
  const Scratch<float> packed(w.offsets * strips * cpu.strip * w.in);
  pack(w, cpu.strip, packed.get(), workers);

  const int64_t block = block_rows(w.in, w.out, rows, workers), blocks = parts_of(rows, block);
  std::atomic<bool> valid{true};
#pragma omp parallel num_threads(workers)
  {
    const Scratch<float> sums(block * ld);
    const Scratch<int32_t> from(block + 16), to(block + 16);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block;
      const int size = static_cast<int>(std::min(block, rows - first));
      for (int r = 0; r < size; ++r)
        for (int64_t c = 0; c < ld; ++c) sums[r * ld + c] = start && c < w.out ? start[c] : 0.0f;
      for (int64_t k = 0; k < w.offsets; ++k) {
        const int64_t offset = flip ? w.offsets - 1 - k : k;
        const int count = cpu.compact(map + offset * rows + first, size, from.get(), to.get());
        if (!rows_within(from.get(), count, num_in)) {
          valid = false;
          break;
        }
        if (k + 1 < w.offsets) fetch(map + (flip ? offset - 1 : offset + 1) * rows + first, size);
        cpu.multiply(in, w.in, from.get(), count, packed.get() + k * strips * cpu.strip * w.in,
                     static_cast<int>(w.out), to.get(), sums.get(), ld);
      }
      for (int r = 0; r < size; ++r) std::copy_n(sums.get() + r * ld, w.out, out + (first + r) * w.out);
    }
  }
  STD_TORCH_CHECK(valid, "the table names rows that features (", num_in, " rows) do not have");
  return result;
}

struct Task {
  int64_t part, offset;
};

// The pairs of each kernel offset in each of `parts` runs of output rows go to one thread.
// Threads get about the same number of pairs: the largest task first, to the least loaded.
std::vector<std::vector<Task>> share(const int32_t* map, int64_t offsets, int64_t rows, int64_t parts, int workers) {
  std::vector<int64_t> pairs(parts * offsets);
#pragma omp parallel for num_threads(workers) schedule(static)
  for (int64_t i = 0; i < parts * offsets; ++i) {
    const int32_t* row = map + (i % offsets) * rows;
    const int64_t part = i / offsets;
    int64_t count = 0;
    for (int64_t r = cut(rows, parts, part); r < cut(rows, parts, part + 1); ++r) count += row[r] >= 0;
    pairs[i] = count;
  }
  std::vector<int64_t> largest_first(pairs.size()), load(workers);
  std::iota(largest_first.begin(), largest_first.end(), 0);
  std::stable_sort(largest_first.begin(), largest_first.end(), [&](auto a, auto b) { return pairs[a] > pairs[b]; });
  std::vector<std::vector<Task>> tasks(workers);
  for (int64_t i : largest_first) {
    const auto worker = std::min_element(load.begin(), load.end()) - load.begin();
    load[worker] += pairs[i];
    tasks[worker].push_back({i / offsets, i % offsets});
  }
  for (auto& list : tasks)
    std::sort(list.begin(), list.end(),
              [](Task a, Task b) { return a.part != b.part ? a.part < b.part : a.offset < b.offset; });
  return tasks;
}

// The gradient of the weight (C_out, K, C_in): for each offset, grad^T @ features over its pairs.
//
// A thread owns whole offsets, so that nothing has to be added up between threads; only where
// that leaves threads idle are the rows cut into parts, which are added in a fixed order.
class WeightGradient {
 public:
  WeightGradient(const float* features, int64_t in, const float* grad, int64_t out, const int32_t* map,
                 int64_t offsets, int64_t rows, int64_t num_in)
      : features_(features), grad_(grad), map_(map), in_(in), out_(out), offsets_(offsets), rows_(rows),
        num_in_(num_in), workers_(threads()), ld_(round_up(in, cpu_.lanes)), size_(round_up(out, cpu_.outer_rows) * ld_),
        parts_(std::min({int64_t{workers_}, parts_of(6 * workers_, offsets), affordable()})),
        sums_(parts_ * offsets * size_) {}

  bool run() {
    const auto tasks = workers_ > 1 ? share(map_, offsets_, rows_, parts_, workers_) : all_tasks();
#pragma omp parallel for num_threads(workers_) schedule(static, 1)
    for (int worker = 0; worker < workers_; ++worker) work(tasks[worker]);
    return valid_;
  }

  void copy_to(float* result) const {
#pragma omp parallel for num_threads(workers_) schedule(static)
    for (int64_t o = 0; o < out_; ++o)
      for (int64_t k = 0; k < offsets_; ++k) {
        float* to = result + (o * offsets_ + k) * in_;
        std::copy_n(sums(0, k) + o * ld_, in_, to);
        for (int64_t part = 1; part < parts_; ++part)
          for (int64_t i = 0; i < in_; ++i) to[i] += sums(part, k)[o * ld_ + i];
      }
  }

 private:
  // Parts whose sums take no more than kSums bytes a thread; one in any case.
  int64_t affordable() const { return std::max<int64_t>(1, workers_ * kSums / (4 * offsets_ * size_)); }

  // Rows after which a thread goes on to its next offset: few enough for features and gradients
  // to stay in the cache over all offsets, many enough for an offset's sums to be worth loading.
  int64_t stretch() const { return std::clamp<int64_t>(16 * std::max(in_, out_), 1024, 8192); }
  int chunk() const { return static_cast<int>(std::clamp<int64_t>((256 << 10) / (4 * (in_ + out_)), 64, 256)); }

  std::vector<std::vector<Task>> all_tasks() const {
    std::vector<std::vector<Task>> tasks(1);
    for (int64_t k = 0; k < offsets_; ++k) tasks[0].push_back({0, k});
    return tasks;
  }

  float* sums(int64_t part, int64_t k) const { return sums_.get() + (part * offsets_ + k) * size_; }

  void work(const std::vector<Task>& tasks) {
    const int64_t longest = stretch();
    const Scratch<float> left(chunk() * round_up(out_, kLeftStrip)), right(chunk() * round_up(in_, cpu_.outer_strip));
    const Scratch<int32_t> from(longest + 16), to(longest + 16);
    for (const Task& task : tasks) std::fill_n(sums(task.part, task.offset), size_, 0.0f);
    for (size_t i = 0, next; i < tasks.size(); i = next) {
      for (next = i; next < tasks.size() && tasks[next].part == tasks[i].part;) ++next;
      const int64_t end = cut(rows_, parts_, tasks[i].part + 1);
      for (int64_t row = cut(rows_, parts_, tasks[i].part); row < end; row += longest)
        for (size_t t = i; t < next; ++t) {
          const int32_t* map = map_ + tasks[t].offset * rows_ + row;
          if (t + 1 < next) fetch(map_ + tasks[t + 1].offset * rows_ + row, std::min(longest, end - row));
          const int count = cpu_.compact(map, static_cast<int>(std::min(longest, end - row)), from.get(), to.get());
          if (!rows_within(from.get(), count, num_in_)) {
            valid_ = false;
            return;
          }
          add(grad_ + row * out_, from.get(), to.get(), count, left.get(), right.get(),
              sums(tasks[t].part, tasks[t].offset));
        }
    }
  }

  void add(const float* grad, const int32_t* from, const int32_t* to, int count, float* left, float* right,
           float* sums) const {
    const int high = static_cast<int>(round_up(out_, cpu_.outer_rows));
    for (int first = 0; first < count; first += chunk()) {
      const int size = std::min(chunk(), count - first);
      cpu_.gather_left(grad, out_, to + first, size, left);
      cpu_.gather_right(features_, in_, from + first, size, right);
      cpu_.outer(left, high, right, static_cast<int>(in_), size, sums, ld_);
    }
  }

  const Kernels& cpu_ = kernels();
  const float *features_, *grad_;
  const int32_t* map_;
  const int64_t in_, out_, offsets_, rows_, num_in_;
  const int workers_;
  const int64_t ld_, size_, parts_;
  const Scratch<float> sums_;
  std::atomic<bool> valid_{true};
};

Tensor sparse_conv_weight_grad(Tensor features, Tensor grad, Tensor table) {
  const float* in = read<float>(features, 2, "features");
  const float* out = read<float>(grad, 2, "grad");
  const int32_t* map = read<int32_t>(table, 2, "table");
  STD_TORCH_CHECK(grad.size(0) == table.size(1), "grad has ", grad.size(0), " rows, the table ", table.size(1));
  Tensor result = make<float>(features, {grad.size(1), table.size(0), features.size(1)});
  if (result.numel() == 0) return result;
  WeightGradient gradient(in, features.size(1), out, grad.size(1), map, table.size(0), table.size(1), features.size(0));
  STD_TORCH_CHECK(gradient.run(), "the table names rows that features (", features.size(0), " rows) do not have");
  gradient.copy_to(write<float>(result));
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pcssl, CPU, m) {
  m.impl("sparse_conv", TORCH_BOX(&sparse_conv));
  m.impl("sparse_conv_weight_grad", TORCH_BOX(&sparse_conv_weight_grad));
}

}  // namespace pcssl
