// Compiles the rest of a unit for AVX-512 (F, BW, DQ, VL).
#define LSTMKERN_VARIANT avx512
#define LSTMKERN_VECTOR_BYTES 64
#define LSTMKERN_BF16 0
#include "../variant.h"

// After all other headers: no code from outside may be compiled for this target (see ../simd.h).
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
