// Asynchronous copies, matrix loads and matrix products of a warp: PTX on a GPU, csrc/emulator/mma.cpp without one.
//
// Fragments are those of the PTX ISA. With g = lane / 4 and t = lane % 4, a lane holds of a product
//   m16n8k16 (two 16-bit numbers k, k + 1 in a register):
//     left   [16 x k16]  (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8)
//     right  [k16 x 8]   (2t, g) (2t + 8, g)
//   m16n8k8 of TF32 (one number in a register):
//     left   [16 x k8]   (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)
//     right  [k8 x 8]    (t, g) (t + 4, g)
//   sums     [16 x 8]    (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
// In bytes of k both are the same, so both are filled by the same matrix loads from rows of consecutive k.
#pragma once

#include "device.h"

namespace pcssl {

struct tf32 {};  // float32 whose fraction is rounded to 10 bits; kept in memory as float

#ifndef PCSSL_EMULATE

namespace detail {
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
}  // namespace detail

// Copies 16 bytes to shared memory, or writes 16 zeros and reads nothing; both addresses at multiples of 16.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::shared_address(shared)), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the thread's own copies but for those of the last `groups` (0 to 2) commits.
__device__ __forceinline__ void wait_copies(int groups) {
  if (groups == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
  else if (groups == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
  else asm volatile("cp.async.wait_group 2;" ::: "memory");
}

// Four matrices of 8 rows of 16 bytes. Lane i gives the address of row i % 8 of matrix i / 8, and gets of matrix m
// in to[m] bytes 4t to 4t + 3 of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

// The same of 16-bit numbers, transposed: to[m] holds column g of rows 2t and 2t + 1.
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(detail::shared_address(row))
               : "memory");
}

// To the nearest TF32, ties away from zero: the tensor cores would cut the bits off.
__device__ __forceinline__ uint32_t round_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

#define PCSSL_MULTIPLY(T, SHAPE, TYPES)                                                                        \
  __device__ __forceinline__ void multiply_add(T, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,       \
                                               uint32_t b1) {                                                  \
    asm("mma.sync.aligned." SHAPE ".row.col.f32." TYPES ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "  \
        "{%0, %1, %2, %3};"                                                                                    \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                       \
  }
PCSSL_MULTIPLY(bf16, "m16n8k16", "bf16.bf16")
PCSSL_MULTIPLY(fp16, "m16n8k16", "f16.f16")
PCSSL_MULTIPLY(tf32, "m16n8k8", "tf32.tf32")
#undef PCSSL_MULTIPLY

#else

void copy_async(void* shared, const void* global, bool there);
void load_matrices(uint32_t (&to)[4], const void* row);
void load_transposed(uint32_t (&to)[4], const void* row);
uint32_t round_tf32(uint32_t bits);
void multiply_add(bf16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_add(fp16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void multiply_add(tf32, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
inline void commit_copies() { emulator::commit_copies(); }
inline void wait_copies(int groups) { emulator::wait_copies(groups); }

#endif

}  // namespace pcssl
