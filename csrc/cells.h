// The maths of one time step of each recurrent cell and its derivative, written once.
//
// Templates over the value type V: float, double, a SIMD register, a CUDA scalar. A value type brings its operators
// and two functions, sigmoid(V) and tanh(V). They are found by name, so this file is included inside the namespace
// that has them, after them (hence no include guard). No loops, no pointers, no torch.
//
// Notation as in torch.nn: i f g o (LSTM), r z n (GRU); a name with d in front is the derivative of the loss by it,
// and for a gate it is the derivative by the value before the gate's nonlinearity.
#ifndef LSTMKERN_CELL
#if defined(__CUDACC__)
#define LSTMKERN_CELL __host__ __device__ __forceinline__
#else
#define LSTMKERN_CELL inline __attribute__((always_inline))
#endif
#endif

namespace cells {

// Hochreiter & Schmidhuber 1997 with forget gate, as in torch.nn.LSTM. In: values before the nonlinearity in i f g o.
// Out: the gates in i f g o, and c, h. In two halves for who has many cells at hand: each is a long chain of dependent
// operations, and a processor fills its pipeline with the same half of other cells.
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

// dc: in, what reaches c from the next step (and from outside); out, what reaches c_prev.
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

// Cho et al. 2014 in torch.nn.GRU's form: n = tanh(n_x + r * n_h), n_x and n_h each with its own bias.
// In: r, z before the nonlinearity, n = n_x. Out: the gates in r z n, and h. In two halves, as above.
template <class V>
LSTMKERN_CELL void gru_gates(V& r, V& z, V& n, const V& n_h) {  // n: before its nonlinearity still
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

// dh_prev: only the part through z * h_prev; the part through the product is the caller's.
template <class V>
LSTMKERN_CELL void gru_backward(const V& r, const V& z, const V& n, const V& n_h, const V& h_prev, const V& dh, V& dr,
                                V& dz, V& dn, V& dn_h, V& dh_prev) {
  dn = dh * (1 - z) * (1 - n * n);
  dz = dh * (h_prev - n) * z * (1 - z);
  dr = dn * n_h * r * (1 - r);
  dn_h = dn * r;
  dh_prev = dh * z;
}

// Elman's network: h = tanh(a) or relu(a), a the sum of both products and biases.
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
