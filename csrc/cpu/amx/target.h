// Compiles the rest of a unit for AMX, for bf16 only: matrix products on tile registers, everything else in AVX-512.
#define LSTMKERN_VARIANT amx
#define LSTMKERN_VECTOR_BYTES 64
#define LSTMKERN_BF16 2
#include "../variant.h"

// After all other headers: no code from outside may be compiled for this target (see ../simd.h).
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,avx512bf16,amx-tile,amx-bf16")
