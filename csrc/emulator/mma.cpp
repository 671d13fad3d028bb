// The operations of csrc/cuda/mma.h, after the PTX ISA's tables of fragments.
#include "../cuda/mma.h"

namespace pcssl {
namespace {

void check_aligned(const void* at, const char* what) {
  if (reinterpret_cast<uintptr_t>(at) % 16) emulator::fail(what);
}

struct Load {
  uint32_t (*to)[4];
  const unsigned char* row;
  bool transposed;
};

// Rows of eight lanes are read at a time; rows 16 bytes wide in the same sixteenth byte of 128 take turns.
void count_conflicts(void* const* lanes) {
  for (int phase = 0; phase < 32; phase += 8) {
    int rows[8] = {};
    for (int i = 0; i < 8; ++i) {
      const auto at = reinterpret_cast<uintptr_t>(static_cast<Load*>(lanes[phase + i])->row);
      bool seen = false;
      for (int j = 0; j < i; ++j) seen |= at == reinterpret_cast<uintptr_t>(static_cast<Load*>(lanes[phase + j])->row);
      rows[at / 16 % 8] += !seen;
    }
    emulator::matrix_loads += 1;
    emulator::matrix_conflicts += *std::max_element(rows, rows + 8) - 1;
  }
}

void load_all(void* const* lanes) {
  count_conflicts(lanes);
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      const Load& mine = *static_cast<Load*>(lanes[lane]);
      auto element = [&](int row, int column) {
        uint16_t x;
        std::memcpy(&x, static_cast<Load*>(lanes[8 * m + row])->row + 2 * column, 2);
        return static_cast<uint32_t>(x);
      };
      const int g = lane / 4, t = lane % 4;
      (*mine.to)[m] = mine.transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                      : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
}

void load(uint32_t (&to)[4], const void* row, bool transposed) {
  check_aligned(row, "a row of a matrix load is not at a multiple of 16 bytes");
  Load mine{&to, static_cast<const unsigned char*>(row), transposed};
  emulator::together(&mine, load_all);
}

struct Product {
  float* sums;
  const uint32_t* a;
  uint32_t b[2];
};

template <typename T>
float half(uint32_t pair, int i) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * i));
  T x;
  std::memcpy(&x, &bits, 2);
  return to_float(x);
}

template <typename T>
void multiply_all(void* const* lanes) {
  constexpr int kDepth = std::is_same_v<T, tf32> ? 8 : 16;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Product& one = *static_cast<Product*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2);
      if constexpr (std::is_same_v<T, tf32>) {
        // The low 13 bits are not wired.
        a[row][t + 4 * (i / 2)] = __uint_as_float(one.a[i] & ~0x1fffu);
        if (i < 2) b[t + 4 * i][g] = __uint_as_float(one.b[i] & ~0x1fffu);
      } else {
        for (int e = 0; e < 2; ++e) {
          a[row][2 * t + e + 8 * (i / 2)] = half<T>(one.a[i], e);
          if (i < 2) b[2 * t + e + 8 * i][g] = half<T>(one.b[i], e);
        }
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float& sum = static_cast<Product*>(lanes[lane])->sums[i];
      double exact = sum;
      for (int k = 0; k < kDepth; ++k) exact += static_cast<double>(a[row][k]) * b[k][column];
      sum = static_cast<float>(exact);
    }
}

template <typename T>
void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product mine{sums, a, {b0, b1}};
  emulator::together(&mine, multiply_all<T>);
}

}  // namespace

void copy_async(void* shared, const void* global, bool there) {
  check_aligned(shared, "a copy goes to no multiple of 16 bytes");
  check_aligned(global, "a copy comes from no multiple of 16 bytes");
  emulator::copy_later(shared, global, there ? 16 : 0, there ? 0 : 16);
}

void load_matrices(uint32_t (&to)[4], const void* row) { load(to, row, false); }
void load_transposed(uint32_t (&to)[4], const void* row) { load(to, row, true); }

uint32_t round_tf32(uint32_t bits) {
  if ((bits & 0x7f800000) == 0x7f800000) return bits & ~0x1fffu;
  return (bits + 0x1000) & ~0x1fffu;
}

void multiply_add(bf16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<bf16>(sums, a, b0, b1);
}
void multiply_add(fp16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<fp16>(sums, a, b0, b1);
}
void multiply_add(tf32, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<tf32>(sums, a, b0, b1);
}

}  // namespace pcssl
