// The kernels of one instruction set for every cell: included by <instruction set>/kernels.cpp.
namespace lstmkern {
namespace cpu {
namespace LSTMKERN_VARIANT {
// clang-format off: each builds on those before it
#include "simd.h"
#include "steps.h"
#include "gemm.h"
#include "pack.h"
#include "common.inl"
#include "direct.h"
#include "gates.h"
#include "cell_kernels.h"
#include "forward.inl"
#include "gradients.inl"
#include "backward.inl"
#include "product.inl"
// clang-format on

// f(value of the type that the layer's values are stored as).
template <class F>
void with_type(DType dtype, F&& f) {
#if LSTMKERN_BF16  // a variant for bf16 only: for the other types it would be no faster than avx512
  f(bf16{});
#else
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f64: return f(double{});
    case DType::bf16: return f(bf16{});
    case DType::f16: return f(f16{});
  }
#endif
}

void forward(const Forward& layer) {
  with_type(layer.dtype, [&](auto s) { run_forward<decltype(s)>(layer); });
}
void backward(const Backward& layer) {
  with_type(layer.dtype, [&](auto s) { run_backward<decltype(s)>(layer); });
}
Work work_of(const Backward& layer, bool backward) {
  Work work;
  with_type(layer.dtype, [&](auto s) {
    using S = decltype(s);
    const int64_t rows = count_rows(layer);
    work = backward ? backward_work<S>(layer, rows) : forward_work<S>(layer, rows);
  });
  return work;
}

}  // namespace LSTMKERN_VARIANT
}  // namespace cpu
}  // namespace lstmkern
