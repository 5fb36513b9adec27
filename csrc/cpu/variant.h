// The headers of a kernel variant and the functions that each variant defines.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "../layer.h"
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
}  // namespace cpu
}  // namespace lstmkern
