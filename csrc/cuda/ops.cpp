// The CUDA operators: device guard, current stream, workspace, and matrix products through ATen (cuBLAS). The only file
// in this folder that includes torch. Guard and stream come from c10, because ATen/cuda would need more headers of the
// CUDA toolkit.
#include "../ops.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "dispatch.h"

namespace lstmkern {
namespace cuda {
namespace {

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return at::kFloat;
    case DType::f64: return at::kDouble;
    case DType::bf16: return at::kBFloat16;
    case DType::f16: return at::kHalf;
  }
  TORCH_INTERNAL_ASSERT(false);
}

// Matrix products through ATen's out-variants, so that torch's TF32 setting applies. torch's settings for 16-bit sums
// (allow_{bf16,fp16}_reduced_precision_reduction, allow_fp16_accumulation) have no effect: they concern results of 16
// bits, and all results here are fp32. In the time loop most operands are the same at every step, so a tensor for an
// operand is kept until the operand changes.
class AtenProducts final : public Products {
 public:
  explicit AtenProducts(c10::Device device) : device_(device) {}

  void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool add) override {
    Tensor &to = of(out, 0), &left = of(a, 1), &right = of(b, 2);
    if (add)
      at::addmm_out(to, to, left, right);
    else if (out.dtype == a.dtype)
      at::mm_out(to, left, right);
    else if (a.dtype == DType::f16 && at::globalContext().allowFP16AccumulationCuBLAS())
      at::mm_out(to, left.to(at::kFloat), right.to(at::kFloat));  // torch then refuses 16-bit operands
    else
      at::mm_out(to, left, right, at::kFloat);
  }

 private:
  Tensor& of(const Matrix& m, int slot) {
    Kept& kept = kept_[slot];
    const Matrix& k = kept.matrix;
    if (!kept.tensor.defined() || k.data != m.data || k.rows != m.rows || k.columns != m.columns ||
        k.stride != m.stride || k.transposed != m.transposed || k.dtype != m.dtype) {
      const std::array<int64_t, 2> sizes{m.rows, m.columns};
      const std::array<int64_t, 2> strides{m.transposed ? 1 : m.stride, m.transposed ? m.stride : 1};
      const auto options = at::TensorOptions().dtype(scalar_type(m.dtype)).device(device_);
      kept.matrix = m;
      kept.tensor = at::for_blob(m.data, sizes).strides(strides).options(options).target_device(device_).make_tensor();
    }
    return kept.tensor;
  }

  struct Kept {
    Matrix matrix;
    Tensor tensor;
  };
  c10::Device device_;
  Kept kept_[3];
};

struct CudaBackEnd {
  static constexpr bool on_device = true;
  static bool capturing() {  // on the current stream of the guarded device
    return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  }
  struct Guard {  // selects the tensors' device and switches autograd off
    explicit Guard(const Tensor& tensor) : device(tensor.device()) {}
    c10::cuda::CUDAGuard device;
    at::AutoDispatchBelowADInplaceOrView below;
  };

  template <class L>
  static void run(const L& layer, const Tensor& like) {
    const Choice choice = tier_for(layer);
    const Tensor workspace = at::empty({static_cast<int64_t>(choice.workspace)}, like.options().dtype(at::kByte));
    AtenProducts products(like.device());
    const Call call{workspace.data_ptr(), &products, c10::cuda::getCurrentCUDAStream(like.device().index()).stream()};
    choice.tier->pass(layer).run(layer, call);
  }
  static void forward(const Forward& layer, const Tensor& like) { run(layer, like); }
  static void backward(const Backward& layer, const Tensor& like) { run(layer, like); }
};

}  // namespace

TORCH_LIBRARY_IMPL(lstmkern, CUDA, m) {
  m.impl("layer_forward", layer_forward<CudaBackEnd>);
  m.impl("layer_backward", layer_backward<CudaBackEnd>);
}

}  // namespace cuda
}  // namespace lstmkern
