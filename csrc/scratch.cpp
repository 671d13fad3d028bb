// How much memory the operators use besides their inputs and results.
#include "tensors.h"

// The most bytes of scratch memory at any one time since the last call.
extern "C" __attribute__((visibility("default"))) int64_t pcssl_scratch_peak() {
  return pcssl::scratch_peak.exchange(pcssl::scratch_now);
}
