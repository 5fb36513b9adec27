// The kernels for every machine: 16-byte registers through the compiler (SSE2, NEON, ...).
#define LSTMKERN_VECTOR_BYTES 16
#define LSTMKERN_BF16 0
#include "variant.h"

namespace lstmkern {
namespace cpu {
namespace baseline {
#include "kernels.inl"
}  // namespace baseline
}  // namespace cpu
}  // namespace lstmkern
