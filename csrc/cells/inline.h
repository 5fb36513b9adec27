// How the functions of csrc/cells/ are inlined, on the host and on a GPU.
#pragma once

#if defined(__CUDACC__)
#define LSTMKERN_CELL __host__ __device__ __forceinline__
#else
#define LSTMKERN_CELL inline __attribute__((always_inline))
#endif
