// Compiles the rest of a unit for every machine: 16-byte registers through the compiler (SSE2, NEON, ...).
#define LSTMKERN_VARIANT baseline
#define LSTMKERN_VECTOR_BYTES 16
#define LSTMKERN_BF16 0
#include "../variant.h"
