// The functions that each variant (instruction set) of the kernels defines.
#pragma once

#include "../layer.h"
#include "cost.h"
#include "product.h"

#define LSTMKERN_DECLARE_VARIANT(name)                         \
  namespace name {                                             \
  void forward(const Forward& layer);                          \
  void backward(const Backward& layer);                        \
  Work work_of(const Backward& layer, bool backward);          \
  void multiply_part(const ProductPart& part, int64_t rounds); \
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
