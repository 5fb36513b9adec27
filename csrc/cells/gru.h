// The GRU's time step (see ../cells.h). Cho et al. 2014 in torch.nn.GRU's form: n = tanh(n_x + r * n_h), where n_x and
// n_h each have their own bias.
#include "inline.h"

namespace cells {

// In: r, z before their nonlinearities, n = n_x. Out: the gates in r z n, and h. In two halves, as the LSTM.
template <class V>
LSTMKERN_CELL void gru_gates(V& r, V& z, V& n, const V& n_h) {  // leaves n before its nonlinearity
  r = sigmoid(r);
  z = sigmoid(z);
  n = n + r * n_h;
}

template <class V>
LSTMKERN_CELL V gru_output(const V& z, V& n, const V& h_prev) {
  n = tanh(n);
  return n + z * (h_prev - n);
}

template <class V>
LSTMKERN_CELL void gru_forward(V& r, V& z, V& n, const V& n_h, const V& h_prev, V& h) {
  gru_gates(r, z, n, n_h);
  h = gru_output(z, n, h_prev);
}

// dh_prev: only the part through z * h_prev. The caller adds the part through the recurrent matrix product.
template <class V>
LSTMKERN_CELL void gru_backward(const V& r, const V& z, const V& n, const V& n_h, const V& h_prev, const V& dh, V& dr,
                                V& dz, V& dn, V& dn_h, V& dh_prev) {
  dn = dh * (1 - z) * (1 - n * n);
  dz = dh * (h_prev - n) * z * (1 - z);
  dr = dn * n_h * r * (1 - r);
  dn_h = dn * r;
  dh_prev = dh * z;
}

}  // namespace cells
