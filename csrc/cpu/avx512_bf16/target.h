// Compiles the rest of a unit for AVX-512 with products of bf16 pairs (vdpbf16ps), for bf16 only.
#define LSTMKERN_VARIANT avx512_bf16
#define LSTMKERN_VECTOR_BYTES 64
#define LSTMKERN_BF16 1
#include "../variant.h"

// After all other headers: no code from outside may be compiled for this target (see ../simd.h).
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,avx512bf16")
