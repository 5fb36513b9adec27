// The headers of a kernel variant and the functions that each variant defines.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../layer.h"
#include "team.h"

namespace lstmkern {
namespace cpu {

// Something that bounds a kernel and can be run by itself (peak.inl): run() returns the work done in `rounds` rounds,
// on memory of this thread's own that holds ones.
struct Rate {
  const char* name;
  bool (*supported)();
  double (*run)(int64_t rounds, char* memory, int64_t bytes);
};
// Those of an instruction set (see LSTMKERN_CPU_CAPABILITY), up to one without a name.
const Rate* rates(const char* capability);

namespace baseline {
void forward(const Forward& layer);
void backward(const Backward& layer);
const Rate* rates();
}  // namespace baseline
namespace avx2 {
void forward(const Forward& layer);
void backward(const Backward& layer);
const Rate* rates();
}  // namespace avx2
namespace avx512 {
void forward(const Forward& layer);
void backward(const Backward& layer);
const Rate* rates();
}  // namespace avx512
}  // namespace cpu
}  // namespace lstmkern
