// The plain RNN's time step (see ../cells.h). Elman's network: h = tanh(a) or relu(a), where a is the sum of both
// matrix products and biases.
#include "inline.h"

namespace cells {

template <bool Relu, class V>
LSTMKERN_CELL V rnn_forward(const V& a) {
  // Written so that NaN stays NaN: the comparison is false for it.
  if constexpr (Relu)
    return a < 0 ? V{} : a;
  else
    return tanh(a);
}

template <bool Relu, class V>
LSTMKERN_CELL V rnn_backward(const V& h, const V& dh) {
  if constexpr (Relu)
    return h <= 0 ? V{} : dh;
  else
    return dh * (1 - h * h);
}

}  // namespace cells
