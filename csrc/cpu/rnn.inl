// The plain RNN on the CPU, with tanh and with relu: included by <instruction set>/rnn.cpp.
namespace lstmkern {
namespace cpu {
namespace LSTMKERN_VARIANT {
// clang-format off: each builds on those before it
#include "cell.inl"
#include "../cells/rnn.h"
// clang-format on

template <bool Relu, class S>
class RnnForward {
  using C = typename Types<S>::Sum;
  static constexpr int W = width<C>;
  const int registers;

 public:
  static constexpr int kGates = 1;
  INLINE RnnForward(const ForwardPass<S>&, const ForwardTile<S>& tile) : registers(tile.registers) {}

  template <class Lanes, class Sums>
  INLINE void begin(const Lanes&, int, int, Sums&& sums, C* kept) {
    for (int v = 0; v < registers; ++v) store(kept + v * W, sums(0).of_h(v) + sums(0).of_x(v));
  }
  template <class Lanes>
  INLINE void end(const Lanes&, int64_t, int, const C* kept, int64_t, Vec<C> (&results)[2]) {
    results[0] = cells::rnn_forward<Relu, Vec<C>>(load(kept));
    results[1] = Vec<C>{};
  }
  INLINE void store_rest(int64_t, Vec<C>, int64_t, int64_t, const HiddenRow<S>&) {}
};

template <bool Relu, class S>
class RnnBackward {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const S* const output;

 public:
  static constexpr int kInputs = 1, kOutputs = 1;
  INLINE RnnBackward(const BackwardPass<S>& pass, int64_t s, int64_t j)
      : output(at<const S>(pass.L.output, pass.L, pass.steps.t(s), j) + pass.d * pass.L.P) {}

  INLINE void inputs(int64_t unit, int64_t n, Vec<C>* in) const { in[0] = load(output + unit, n); }
  static INLINE void derivative(Vec<C> dh, const Vec<C>* in, Vec<C>* out) {
    out[0] = cells::rnn_backward<Relu, Vec<C>>(in[0], dh);
  }
  static INLINE void outputs(const BackwardPass<S>&, int64_t, int64_t, int64_t n, const Vec<C>* out, X* dgates, X*) {
    store(dgates, out[0], n);
  }
};

template <class S>
using TanhForward = RnnForward<false, S>;
template <class S>
using TanhBackward = RnnBackward<false, S>;
template <class S>
using ReluForward = RnnForward<true, S>;
template <class S>
using ReluBackward = RnnBackward<true, S>;

template <class S>
CellKernels<S> rnn_tanh_kernels() {
  return {finish_forward<TanhForward, S>, finish_backward<TanhBackward, S>};
}
template <class S>
CellKernels<S> rnn_relu_kernels() {
  return {finish_forward<ReluForward, S>, finish_backward<ReluBackward, S>};
}
LSTMKERN_FOR_EVERY_TYPE(rnn_tanh_kernels)
LSTMKERN_FOR_EVERY_TYPE(rnn_relu_kernels)

}  // namespace LSTMKERN_VARIANT
}  // namespace cpu
}  // namespace lstmkern
