// The LSTM's time step (see ../cells.h). Hochreiter & Schmidhuber 1997 with a forget gate, as in torch.nn.LSTM.
#include "inline.h"

namespace cells {

// In: the values before the nonlinearities, in i f g o. Out: the gates in i f g o, and c, h. The step comes in two
// halves for callers that compute many cells: each cell is a long chain of dependent operations, and a processor
// fills its pipeline with the same half of other cells.
template <class V>
LSTMKERN_CELL void lstm_state(V& i, V& f, V& g, V& o, const V& c_prev, V& c) {
  i = sigmoid(i);
  f = sigmoid(f);
  g = tanh(g);
  o = sigmoid(o);
  c = f * c_prev + i * g;
}

template <class V>
LSTMKERN_CELL V lstm_output(const V& o, const V& c) {
  return o * tanh(c);
}

template <class V>
LSTMKERN_CELL void lstm_forward(V& i, V& f, V& g, V& o, const V& c_prev, V& c, V& h) {
  lstm_state(i, f, g, o, c_prev, c);
  h = lstm_output(o, c);
}

// dc. In: the gradient that reaches c from the next step and from outside. Out: the gradient of c_prev.
template <class V>
LSTMKERN_CELL void lstm_backward(const V& i, const V& f, const V& g, const V& o, const V& c_prev, const V& tanh_c,
                                 const V& dh, V& dc, V& di, V& df, V& dg, V& d_o) {
  d_o = dh * tanh_c * o * (1 - o);
  V d = dc + dh * o * (1 - tanh_c * tanh_c);
  di = d * g * i * (1 - i);
  df = d * c_prev * f * (1 - f);
  dg = d * i * (1 - g * g);
  dc = d * f;
}

}  // namespace cells
