// The bf16 kernels for AVX-512 with products of bf16 pairs (vdpbf16ps).
#define LSTMKERN_VECTOR_BYTES 64
#define LSTMKERN_BF16 1
#include "variant.h"

// After every header: nothing from outside may be compiled for this target (see simd.h).
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,avx512bf16")
namespace lstmkern {
namespace cpu {
namespace avx512_bf16 {
#include "kernels.inl"
}  // namespace avx512_bf16
}  // namespace cpu
}  // namespace lstmkern
