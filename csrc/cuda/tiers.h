// The kernels of a layer on CUDA, in tiers. Every tier begins with one matrix product for all inputs. Every backward
// ends with one matrix product over all rows per weight gradient. No torch here: the caller computes the matrix
// products (ops.cpp with cuBLAS through ATen, the tests with a plain loop).
#pragma once

#include "../layer.h"

namespace lstmkern {
namespace cuda {

// A matrix of rows x columns values. If `transposed`, memory holds its transpose. `stride` is the distance in elements
// between the rows in memory.
struct Matrix {
  void* data;
  DType dtype;
  int64_t rows, columns, stride;
  bool transposed;
};

inline Matrix transpose(Matrix m) { return {m.data, m.dtype, m.columns, m.rows, m.stride, !m.transposed}; }

// out = a b, or with `add` out += a b (only if all three have the same type). a and b have the layer's dtype. `out` has
// the same dtype, except that it is fp32 for 16-bit types: neither a sum nor part of one is rounded to 16 bits. Called
// once per time step, so it should not allocate device memory.
class Products {
 public:
  virtual void multiply(const Matrix& out, const Matrix& a, const Matrix& b, bool add) = 0;

 protected:
  ~Products() = default;
};

struct Call {
  void* workspace;  // on the device, 256-byte aligned, of the size that TierPass::workspace returns
  Products* products;
  void* stream;
};

// `Layer::order` is ignored (it is 0..N-1). The rows of `input` and `grad_input` are evenly spaced in memory, in the
// same way: [T, N, I] or [N, T, I] contiguous, or packed. `gates` is time-major.

struct Plan;  // resident.h

// How a tier runs a pass. L is Forward or Backward.
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

// The recurrent weights stay in the registers and shared memory of the whole grid. Compute capability 9.0.
extern const TierPass<Forward> grid_forward;
extern const TierPass<Backward> grid_backward;

}  // namespace cuda
}  // namespace lstmkern
