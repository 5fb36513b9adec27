// The kernels of a layer on CUDA, in tiers. All begin with one product for all inputs and end backward with one product
// over all rows for each weight gradient. Torch-free: products are made by whoever calls (cuBLAS through ATen in
// ops.cpp, a plain loop in the tests).
#pragma once

#include "../layer.h"

namespace lstmkern {
namespace cuda {

// rows x columns values. `stride` elements lie between the rows of what is in memory, which is the transpose of the
// matrix that is meant where `transposed` says so.
struct Matrix {
  void* data;
  DType dtype;
  int64_t rows, columns, stride;
  bool transposed;
};

inline Matrix transpose(Matrix m) { return {m.data, m.dtype, m.columns, m.rows, m.stride, !m.transposed}; }

// out = a b, or out += a b where all three are of one type. a and b are of the layer's dtype; out too, but fp32 where
// these are 16 bits wide: no sum, nor part of one, is ever rounded to 16 bits. Nothing should be allocated on the
// device: this is called once per step.
class Products {
 public:
  virtual void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool add) = 0;

 protected:
  ~Products() = default;
};

struct Call {
  void* workspace;  // on the device, 256-byte aligned, as many bytes as *_workspace says
  Products* products;
  void* stream;
};

// Of Layer, `order` is not looked at (it is 0..N-1). The rows of `input` and `grad_input` lie evenly spaced in memory,
// in the same way: [T, N, I] or [N, T, I] contiguous, or packed. `gates` is time-major.

struct Plan;  // resident.h

// How a tier runs a pass; L: Forward or Backward.
template <class L>
struct TierPass {
  size_t (*workspace)(const L&);  // bytes; 0: the tier cannot run this layer on the current device
  void (*run)(const L&, const Call&);
  bool (*plan)(const L&, Plan&);  // how the tier would run the layer; false: it cannot. Null for a tier without plans
};

// Any size, any dtype: per step one matrix product and one fused pointwise kernel.
extern const TierPass<Forward> stepwise_forward;
extern const TierPass<Backward> stepwise_backward;

// The recurrent weights stay in the registers and shared memory of a cluster of blocks. Compute capability 9.0.
extern const TierPass<Forward> cluster_forward;
extern const TierPass<Backward> cluster_backward;

// The same across the grid.
extern const TierPass<Forward> grid_forward;
extern const TierPass<Backward> grid_backward;

}  // namespace cuda
}  // namespace lstmkern
