// Which instruction set runs: the widest that the CPU has, unless told otherwise.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernels.h"

namespace pcssl {
namespace {

const Kernels* usable(const char* name) {
#ifdef PCSSL_X86
  if (!std::strcmp(name, "avx512") && __builtin_cpu_supports("avx512f")) return avx512_kernels();
  if (!std::strcmp(name, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return avx2_kernels();
#endif
  return std::strcmp(name, "portable") ? nullptr : portable_kernels();
}

const Kernels* best() {
  const char* wanted = std::getenv("PCSSL_CPU");
  for (const char* name : {wanted ? wanted : "", "avx512", "avx2"})
    if (const Kernels* set = usable(name)) return set;
  return portable_kernels();
}

const Kernels*& current() {
  static const Kernels* set = best();
  return set;
}

}  // namespace

const Kernels& kernels() { return *current(); }

}  // namespace pcssl

extern "C" __attribute__((visibility("default"))) const char* pcssl_cpu() { return pcssl::kernels().name; }

// 1 if this CPU can run the set `name`, which is then used by every later call.
extern "C" __attribute__((visibility("default"))) int pcssl_use_cpu(const char* name) {
  const pcssl::Kernels* set = pcssl::usable(name);
  if (set) pcssl::current() = set;
  return set != nullptr;
}
