// The headers of a kernel variant and the functions that each variant defines.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) || defined(__i386__)
#if defined(__GNUC__) && !defined(__clang__)  // GCC 12 warns of its own _mm512_undefined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "../layer.h"
#include "memory.h"
#include "team.h"

namespace lstmkern {
namespace cpu {
namespace baseline {
void forward(const Forward& layer);
void backward(const Backward& layer);
}  // namespace baseline
namespace avx2 {
void forward(const Forward& layer);
void backward(const Backward& layer);
}  // namespace avx2
namespace avx512 {
void forward(const Forward& layer);
void backward(const Backward& layer);
}  // namespace avx512
namespace avx512_bf16 {  // bf16 only
void forward(const Forward& layer);
void backward(const Backward& layer);
}  // namespace avx512_bf16
namespace amx {  // bf16 only
void forward(const Forward& layer);
void backward(const Backward& layer);
}  // namespace amx
}  // namespace cpu
}  // namespace lstmkern
