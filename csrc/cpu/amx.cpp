// The bf16 kernels for AMX: products on tile registers, everything else in AVX-512.
#define LSTMKERN_VECTOR_BYTES 64
#define LSTMKERN_BF16 2
#include "variant.h"

// After every header: nothing from outside may be compiled for this target (see simd.h).
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,avx512bf16,amx-tile,amx-bf16")
namespace lstmkern {
namespace cpu {
namespace amx {
#include "kernels.inl"
}  // namespace amx
}  // namespace cpu
}  // namespace lstmkern
