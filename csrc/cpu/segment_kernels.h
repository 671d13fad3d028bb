// The part of kernels_impl.h for runs of rows.
#pragma once

namespace pcssl {
namespace {

// The larger, or the one that is not a number; floats or vectors of them.
template <typename T>
inline T larger(T a, T b) {
  return (b > a) | (b != b) ? b : a;
}
#ifdef __AVX512F__
// The compiler would move the comparison out of the mask registers and back.
inline Vec larger(Vec a, Vec b) {
  const __m512 x = reinterpret_cast<__m512&>(a), y = reinterpret_cast<__m512&>(b);
  const __mmask16 taken = _mm512_cmp_ps_mask(y, x, _CMP_GT_OQ) | _mm512_cmp_ps_mask(y, y, _CMP_UNORD_Q);
  const __m512 result = _mm512_mask_mov_ps(x, taken, y);
  return reinterpret_cast<const Vec&>(result);
}
#endif

template <Reduction R, typename T>
inline T joined(T a, T b) {
  if constexpr (R == kMax) return larger(a, b);
  return a + b;
}

bool rising(const int64_t* numbers, int64_t count) {
  // No branches, so that the compiler can use vectors. Numbers below 0 count, so differences that overflow do not.
  uint64_t signs = static_cast<uint64_t>(numbers[0]);
  for (int64_t i = 1; i < count; ++i) {
    const uint64_t number = static_cast<uint64_t>(numbers[i]);
    signs |= number | (number - static_cast<uint64_t>(numbers[i - 1]));
  }
  return !(signs >> 63);
}

// Segment i, channel by channel.
template <Reduction R>
void reduce_exactly(const Segments& s, int64_t i, const float* values, float* out) {
  const int64_t first = s.offsets[i], last = s.offsets[i + 1];
  for (int64_t c = 0; c < s.channels; ++c) {
    float sum = first < last ? values[first * s.channels + c] : 0.0f;
    for (int64_t row = first + 1; row < last; ++row) sum = joined<R>(sum, values[row * s.channels + c]);
    out[i * s.channels + c] = R == kMean && first < last ? sum / static_cast<float>(last - first) : sum;
  }
}

template <Reduction R>
void reduce_grad_exactly(const Segments& s, int64_t i, const float* grad, const float* values, const float* out,
                         float* to) {
  const int64_t first = s.offsets[i], last = s.offsets[i + 1];
  for (int64_t c = 0; c < s.channels; ++c) {
    const int64_t at = i * s.channels + c;
    float sharing = R == kMean ? static_cast<float>(last - first) : 1.0f;
    if (R == kMax) {
      sharing = 0;
      for (int64_t row = first; row < last; ++row) sharing += values[row * s.channels + c] == out[at];
    }
    for (int64_t row = first; row < last; ++row)
      to[row * s.channels + c] = R != kMax || values[row * s.channels + c] == out[at] ? grad[at] / sharing : 0.0f;
  }
}

// Rows of at most WIDTH <= LANES channels, each as one vector that reaches into the next rows: reading
// there does no harm, and what is written there is overwritten by the next rows. In the same way
// kShort rows of every segment are read and written, so that short ones need no branch on their
// length, which the CPU could not predict.
template <int WIDTH>
struct Narrow {
  static constexpr int kShort = 4;
  typedef float Row __attribute__((vector_size(4 * WIDTH)));
  typedef int32_t Mask __attribute__((vector_size(4 * WIDTH)));
  typedef float LooseRow __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
  static Row load(const float* p) { return *reinterpret_cast<const LooseRow*>(p); }
  static void store(float* p, Row x) { *reinterpret_cast<LooseRow*>(p) = x; }

  // How many rows before an end have a vector that reaches beyond it.
  static int64_t tail(int64_t channels) { return (WIDTH - 1) / channels + kShort - 1; }

  // Where the segments begin whose vectors would reach beyond these segments or their rows.
  static int64_t end(const Segments& s) {
    const int64_t rows = s.offsets[s.last] - tail(s.channels);
    int64_t i = s.last - tail(s.channels);
    while (i > s.first && s.offsets[i] > rows) --i;
    return i > s.first ? i : s.first;
  }

  template <Reduction R>
  static void reduce(const Segments& s, const float* values, float* out) {
    const int64_t c = s.channels, whole = end(s);
    for (int64_t i = s.first; i < whole; ++i) {
      const int64_t first = s.offsets[i], last = s.offsets[i + 1];
      const Mask length = static_cast<int32_t>(last - first < kShort ? last - first : kShort) - Mask{};
      Row sum = length > 0 ? load(values + first * c) : Row{};
#pragma GCC unroll 4
      for (int j = 1; j < kShort; ++j) sum = length > j ? joined<R>(sum, load(values + (first + j) * c)) : sum;
      for (int64_t row = first + kShort; row < last; ++row) sum = joined<R>(sum, load(values + row * c));
      if (R == kMean && first < last) sum /= static_cast<float>(last - first) - Row{};
      store(out + i * c, sum);
    }
    for (int64_t i = whole; i < s.last; ++i) reduce_exactly<R>(s, i, values, out);
  }

  template <Reduction R>
  static void reduce_grad(const Segments& s, const float* grad, const float* values, const float* out, float* to) {
    const int64_t c = s.channels, whole = end(s);
    for (int64_t i = s.first; i < whole; ++i) {
      const int64_t first = s.offsets[i], last = s.offsets[i + 1];
      Row share = load(grad + i * c);
      if (R == kMean) share /= static_cast<float>(last - first) - Row{};
      if (R != kMax) {
#pragma GCC unroll 4
        for (int j = 0; j < kShort; ++j) store(to + (first + j) * c, share);
        for (int64_t row = first + kShort; row < last; ++row) store(to + row * c, share);
        continue;
      }
      const Row top = load(out + i * c);
      Row sharing{};
      for (int64_t row = first; row < last; ++row) sharing += load(values + row * c) == top ? 1.0f - Row{} : Row{};
      share /= sharing;
      for (int64_t row = first; row < last; ++row) store(to + row * c, load(values + row * c) == top ? share : Row{});
    }
    for (int64_t i = whole; i < s.last; ++i) reduce_grad_exactly<R>(s, i, grad, values, out, to);
  }
};

// Floats that are asked for ahead of their use: the CPU by itself does not look far enough.
constexpr int64_t kAhead = 2048;

inline Vec fetch(const float* p) {
  __builtin_prefetch(p + kAhead);
  return load(p);
}
template <bool STREAM>
inline void put(float* p, Vec x) {
  if constexpr (STREAM) return stream(p, x);
  __builtin_prefetch(p + kAhead, 1);
  store(p, x);
}

// VECS vectors of channels of every row, from channel `column` on; the last one ends where the row
// ends. Rows have at least as many channels as a vector.
template <int VECS>
struct Wide {
  int64_t at[VECS];

  Wide(const Segments& s, int64_t column) {
    const int64_t last = s.channels - LANES;
    for (int v = 0; v < VECS; ++v) at[v] = column + v * LANES < last ? column + v * LANES : last;
  }

  template <Reduction R>
  void reduce(const Segments& s, const float* values, float* out) const {
    for (int64_t i = s.first; i < s.last; ++i) {
      const int64_t first = s.offsets[i], last = s.offsets[i + 1];
      Vec sum[VECS] = {};
      if (first < last)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; ++v) sum[v] = fetch(values + first * s.channels + at[v]);
      for (int64_t row = first + 1; row < last; ++row)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; ++v) sum[v] = joined<R>(sum[v], fetch(values + row * s.channels + at[v]));
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) {
        if (R == kMean && first < last) sum[v] /= broadcast(static_cast<float>(last - first));
        store(out + i * s.channels + at[v], sum[v]);
      }
    }
  }

  template <Reduction R, bool STREAM>
  void reduce_grad(const Segments& s, const float* grad, const float* values, const float* out, float* to) const {
    for (int64_t i = s.first; i < s.last; ++i) {
      const int64_t first = s.offsets[i], last = s.offsets[i + 1];
      Vec share[VECS], top[VECS], sharing[VECS] = {};
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) {
        share[v] = load(grad + i * s.channels + at[v]);
        if (R == kMean) share[v] /= broadcast(static_cast<float>(last - first));
        if (R == kMax) top[v] = load(out + i * s.channels + at[v]);
      }
      if constexpr (R == kMax) {
        for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
          for (int v = 0; v < VECS; ++v)
            sharing[v] += fetch(values + row * s.channels + at[v]) == top[v] ? broadcast(1) : Vec{};
#pragma GCC unroll 8
        for (int v = 0; v < VECS; ++v) share[v] /= sharing[v];
      }
      for (int64_t row = first; row < last; ++row)
#pragma GCC unroll 8
        for (int v = 0; v < VECS; ++v) {
          const int64_t here = row * s.channels + at[v];
          put<STREAM>(to + here, R == kMax ? (load(values + here) == top[v] ? share[v] : Vec{}) : share[v]);
        }
    }
  }
};

constexpr int kMostVecs = LANES == 16 ? 8 : 4;

// Calls work(Wide<n>) for runs of n vectors that together cover the channels.
template <int VECS, typename Work>
void for_columns(const Segments& s, int64_t column, Work work) {
  if constexpr (VECS > 1)
    if (s.channels - column <= (VECS - 1) * LANES) return for_columns<VECS - 1>(s, column, work);
  work(Wide<VECS>(s, column));
  if (column + VECS * LANES < s.channels) for_columns<kMostVecs>(s, column + VECS * LANES, work);
}

template <Reduction R>
void reduce_as(const Segments& s, const float* values, float* out) {
  if (s.channels <= 4) return Narrow<4>::reduce<R>(s, values, out);
  if constexpr (LANES >= 8)
    if (s.channels <= 8) return Narrow<8>::reduce<R>(s, values, out);
  if constexpr (LANES >= 16)
    if (s.channels <= 16) return Narrow<16>::reduce<R>(s, values, out);
  for_columns<kMostVecs>(s, 0, [&](const auto& columns) { columns.template reduce<R>(s, values, out); });
}

template <Reduction R>
void reduce_grad_as(const Segments& s, const float* grad, const float* values, const float* out, float* to) {
  if (s.channels <= 4) return Narrow<4>::reduce_grad<R>(s, grad, values, out, to);
  if constexpr (LANES >= 8)
    if (s.channels <= 8) return Narrow<8>::reduce_grad<R>(s, grad, values, out, to);
  if constexpr (LANES >= 16)
    if (s.channels <= 16) return Narrow<16>::reduce_grad<R>(s, grad, values, out, to);
  const bool whole = s.channels % LANES == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Vec) == 0;
  for_columns<kMostVecs>(s, 0, [&](const auto& columns) {
    if (s.large && whole)
      columns.template reduce_grad<R, true>(s, grad, values, out, to);
    else
      columns.template reduce_grad<R, false>(s, grad, values, out, to);
  });
  written();
}

void reduce(const Segments& s, Reduction reduction, const float* values, float* out) {
  if (reduction == kSum) return reduce_as<kSum>(s, values, out);
  if (reduction == kMean) return reduce_as<kMean>(s, values, out);
  reduce_as<kMax>(s, values, out);
}

void reduce_grad(const Segments& s, Reduction reduction, const float* grad, const float* values, const float* out,
                 float* to) {
  if (reduction == kSum) return reduce_grad_as<kSum>(s, grad, values, out, to);
  if (reduction == kMean) return reduce_grad_as<kMean>(s, grad, values, out, to);
  reduce_grad_as<kMax>(s, grad, values, out, to);
}

}  // namespace
}  // namespace pcssl
