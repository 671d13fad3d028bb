// What every operator needs of torch: checked access to dense CPU tensors, and new ones.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <vector>

namespace pcssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
struct TypeOf;
template <>
struct TypeOf<float> { static constexpr ScalarType value = ScalarType::Float; };
template <>
struct TypeOf<int32_t> { static constexpr ScalarType value = ScalarType::Int; };
template <>
struct TypeOf<int64_t> { static constexpr ScalarType value = ScalarType::Long; };

// The elements of a CPU tensor of type T with `dim` axes; contiguous unless `strided`.
template <typename T>
const T* read(const Tensor& x, int64_t dim, const char* name, bool strided = false) {
  STD_TORCH_CHECK(x.is_cpu(), name, " is not on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == TypeOf<T>::value, name, " has the wrong dtype");
  STD_TORCH_CHECK(x.dim() == dim, name, " must have ", dim, " axes, it has ", x.dim());
  STD_TORCH_CHECK(strided || x.is_contiguous(), name, " is not contiguous");
  return static_cast<const T*>(x.data_ptr());
}

template <typename T>
T* write(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Asks for pages of 2 MB for what malloc may have taken anew from the system, as it does for much memory at every
// call: clearing pages of 4 KB one by one, at the first write to each, takes several times as long as filling them.
inline void use_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = 2 << 20;
  constexpr int64_t kMuch = 4 << 20;
  if (bytes < kMuch) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & -kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & -kPage;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a wish: it may fail
#endif
}

template <typename T>
Tensor make(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor result = torch::stable::new_empty(like, {shape.begin(), shape.size()}, TypeOf<T>::value);
  if (like.is_cpu()) use_huge_pages(result.data_ptr(), result.numel() * static_cast<int64_t>(sizeof(T)));
  return result;
}

// Bytes of scratch memory in use, and the most there were; see `pcssl_scratch_peak`.
inline std::atomic<int64_t> scratch_now{0}, scratch_peak{0};

// Scratch memory at the boundary of a cache line, not initialised.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : bytes_(static_cast<int64_t>(sizeof(T)) * (count > 0 ? count : 1)),
        data_(static_cast<T*>(::operator new(bytes_, std::align_val_t(64)))) {
    const int64_t now = scratch_now += bytes_;
    for (int64_t peak = scratch_peak; peak < now && !scratch_peak.compare_exchange_weak(peak, now);) {
    }
  }
  ~Scratch() {
    ::operator delete(data_, std::align_val_t(64));
    scratch_now -= bytes_;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  const int64_t bytes_;
  T* const data_;
};

inline int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

inline int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
inline int64_t parts_of(int64_t x, int64_t size) { return (x + size - 1) / size; }

// Item `i` of `x` cut into `n` nearly equal runs starts here; item i + 1 starts where it ends.
inline int64_t cut(int64_t x, int64_t n, int64_t i) { return x / n * i + (i < x % n ? i : x % n); }

}  // namespace pcssl
