// Compiles the rest of a unit for AVX2 with FMA and F16C.
#define LSTMKERN_VARIANT avx2
#define LSTMKERN_VECTOR_BYTES 32
#define LSTMKERN_BF16 0
#include "../variant.h"

// After all other headers: no code from outside may be compiled for this target (see ../simd.h).
#pragma GCC target("avx2,fma,f16c")
