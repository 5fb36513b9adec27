// The kernels for AVX-512 (F, BW, DQ, VL).
#define LSTMKERN_VECTOR_BYTES 64
#define LSTMKERN_BF16 0
#include "variant.h"

// After every header: nothing from outside may be compiled for this target (see simd.h).
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
namespace lstmkern {
namespace cpu {
namespace avx512 {
#include "kernels.inl"
}  // namespace avx512
}  // namespace cpu
}  // namespace lstmkern
