// What every unit of the CPU kernels includes first, and the functions that each variant (instruction set) defines.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) || defined(__i386__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns about its own _mm512_undefined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "../layer.h"
#include "memory.h"
#include "product.h"
#include "team.h"

#define LSTMKERN_DECLARE_VARIANT(name)                                 \
  namespace name {                                                     \
  void forward(const Forward& layer);                                  \
  void backward(const Backward& layer);                                \
  void multiply_part(const ProductPart& part, int64_t rounds);         \
  }

namespace lstmkern {
namespace cpu {
LSTMKERN_DECLARE_VARIANT(baseline)
LSTMKERN_DECLARE_VARIANT(avx2)
LSTMKERN_DECLARE_VARIANT(avx512)
LSTMKERN_DECLARE_VARIANT(avx512_bf16)  // bf16 only
LSTMKERN_DECLARE_VARIANT(amx)          // bf16 only
}  // namespace cpu
}  // namespace lstmkern
#undef LSTMKERN_DECLARE_VARIANT
