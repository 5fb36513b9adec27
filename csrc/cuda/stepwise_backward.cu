// Stepwise backward. Per step, from the last to the first: one kernel for the cell's derivative, then the matrix
// product dgates W_hh by the caller. The gate gradients of all steps are kept for the weight gradients (gradients.h).
#include "gradients.h"

namespace lstmkern {
namespace cuda {
namespace {

// --- kernels ---

// The gradient of a step's h, from the layer's output and from the step after it. Without projection it is part of the
// cell's kernel. With projection (h is then the projected h) it has a separate kernel.
template <class S>
struct Incoming {
  using C = Compute<S>;
  int64_t P;
  Step step;
  Mask mask;
  const C* product;           // [after.active, P]: dgates W_hh of the step after
  const C* direct;            // [N, P]: GRU's part of it that skips the product; null otherwise
  Rows<const S> grad_output;  // P columns; may be absent
  const S* grad_h_n;          // [N, P]; may be absent
  Rows<const S> output;       // P columns
  const S* h0;                // [N, P]
  Rows<S> h_before;           // P columns, for dW_hh; may be absent
  S* grad_h0;                 // [N, P]; may be absent

  // Whether the step after this one uses the state that this step left, so that its gradient flows back.
  LSTMKERN_DEVICE bool continues(int64_t j) const { return mask.takes(step.after, j) && !mask.is_reset(step.after, j); }

  template <int V>
  LSTMKERN_DEVICE void from_next_step(C (&dh)[V], int64_t j, int64_t column, int n) const {
    if (continues(j)) {
      load(dh, product + j * P + column, n);
      if (direct) add(dh, direct + j * P + column, n);
    } else {
#pragma unroll
      for (int k = 0; k < V; ++k) dh[k] = 0;
    }
  }

  template <int V>
  LSTMKERN_DEVICE void total(C (&dh)[V], int64_t j, int64_t column, int n) const {
    from_next_step(dh, j, column, n);
    if (grad_output.data) add(dh, grad_output.at(step.now.place, j) + column, n);
    if (grad_h_n && !mask.takes(step.after, j)) add(dh, grad_h_n + j * P + column, n);
  }

  // The h that the step started from, read from the outputs.
  template <int V>
  LSTMKERN_DEVICE void previous_h(C (&h)[V], int64_t j, int64_t column, int n) const {
    const S* from = mask.takes(step.before, j) ? output.at(step.before.place, j) : h0 + j * P;
    if (mask.is_reset(step.now, j)) n = 0;
    load(h, from + column, n);
  }

  // Before the first step: whether sequence j has no steps, so that the gradient of its final state is that of its
  // initial state.
  LSTMKERN_DEVICE bool passes_through(int64_t j) const { return step.now.t < 0 && mask.empty(j); }

  // If the step after this one is the sequence's first: stores the gradient of the initial state.
  template <int V>
  LSTMKERN_DEVICE void finish(int64_t j, int64_t column, int n) const {
    if (!grad_h0 || !(mask.takes(step.after, j) || passes_through(j))) return;
    C dh[V];
    from_next_step(dh, j, column, n);
    if (passes_through(j) && grad_h_n) load(dh, grad_h_n + j * P + column, n);
    store(grad_h0 + j * P + column, dh, n);
  }
};

template <class S>
LSTMKERN_KERNEL(kThreads)
incoming(Incoming<S> in, Rows<S> to) {
  using C = Compute<S>;
  constexpr int V = kPer16<S>;
  const Moment &now = in.step.now, &after = in.step.after;
  for_pieces<V>(now.active > after.active ? now.active : after.active, in.P, [&](int64_t j, int64_t column, int n) {
    C dh[V] = {}, h[V] = {};
    if (in.mask.takes(now, j)) {
      in.total(dh, j, column, n);
      in.previous_h(h, j, column, n);
    } else {
      in.template finish<V>(j, column, n);
      if (j >= now.active) return;
    }
    store(to.at(now.place, j) + column, dh, n);
    if (in.h_before.data) store(in.h_before.at(now.place, j) + column, h, n);
  });
}

template <class S>
struct BackwardStep {
  using C = Compute<S>;
  int64_t H, Hp;
  Incoming<S> in;
  const C* d_full;           // [active, H]: dh before projection; null without projection
  Rows<const S> gates;       // [4, Hp]
  Rows<const S> cells;       // H columns
  const S* c0;               // [N, H]
  Rows<const S> grad_cells;  // H columns; may be absent
  const S* grad_c_n;         // [N, H]; may be absent
  C* carry;                  // [N, H]: LSTM: dc; GRU: what skips the product
  Rows<S> dgates;            // [planes, H]
  Rows<S> full;              // H columns: h before projection, for dW_hr; may be absent
  S* grad_c0;                // [N, H]; may be absent
};

template <Cell CELL, class S>
LSTMKERN_KERNEL(kThreads)
cell_backward(BackwardStep<S> p) {
  using C = Compute<S>;
  constexpr int V = kPer16<S>, planes = kPlanes<CELL>;
  const Step& step = p.in.step;
  const Moment &now = step.now, &after = step.after;
  const Mask& mask = p.in.mask;
  for_pieces<V>(now.active > after.active ? now.active : after.active, p.H, [&](int64_t j, int64_t unit, int n) {
    C* const carried = p.carry + j * p.H + unit;
    const C zeros[V] = {};
    if (!mask.takes(now, j)) {
      if (!p.d_full) p.in.template finish<V>(j, unit, n);
      if (CELL == Cell::lstm && p.grad_c0 && (mask.takes(after, j) || p.in.passes_through(j))) {
        C dc[V] = {};
        if (p.in.continues(j)) load(dc, carried, n);
        if (p.in.passes_through(j) && p.grad_c_n) load(dc, p.grad_c_n + j * p.H + unit, n);
        store(p.grad_c0 + j * p.H + unit, dc, n);
      }
      if (j >= now.active) return;  // else padding: zeros, since matrix products read all rows
      S* const to = p.dgates.at(now.place, j) + unit;
#pragma unroll
      for (int g = 0; g < planes; ++g) store(to + g * p.H, zeros, n);
      if (!p.d_full && p.in.h_before.data) store(p.in.h_before.at(now.place, j) + unit, zeros, n);
      if (p.full.data) store(p.full.at(now.place, j) + unit, zeros, n);
      return;
    }
    C dh[V], h_before[V];
    if (p.d_full) {
      load(dh, p.d_full + j * p.H + unit, n);
    } else {
      p.in.total(dh, j, unit, n);
      if (CELL == Cell::gru || p.in.h_before.data) p.in.previous_h(h_before, j, unit, n);
      if (p.in.h_before.data) store(p.in.h_before.at(now.place, j) + unit, h_before, n);
    }
    S* const to = p.dgates.at(now.place, j) + unit;
    const S* const saved = p.gates.data ? p.gates.at(now.place, j) + unit : nullptr;
    if constexpr (CELL == Cell::lstm) {
      C a[4][V], dc[V] = {}, c[V], c_before[V];
#pragma unroll
      for (int g = 0; g < 4; ++g) load(a[g], saved + g * p.Hp, V);
      if (p.in.continues(j)) load(dc, carried, n);
      if (p.grad_c_n && !mask.takes(after, j)) load(dc, p.grad_c_n + j * p.H + unit, n);
      if (p.grad_cells.data) add(dc, p.grad_cells.at(now.place, j) + unit, n);
      load(c, p.cells.at(now.place, j) + unit, n);
      const S* from = mask.takes(step.before, j) ? p.cells.at(step.before.place, j) : p.c0 + j * p.H;
      load(c_before, from + unit, mask.is_reset(now, j) ? 0 : n);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const C i = a[0][k], f = a[1][k], g = a[2][k], o = a[3][k], tanh_c = tanh(c[k]);
        cells::lstm_backward(i, f, g, o, c_before[k], tanh_c, dh[k], dc[k], a[0][k], a[1][k], a[2][k], a[3][k]);
        c[k] = o * tanh_c;
      }
#pragma unroll
      for (int g = 0; g < 4; ++g) store(to + g * p.H, a[g], n);
      store(carried, dc, n);
      if (p.full.data) store(p.full.at(now.place, j) + unit, c, n);
    } else if constexpr (CELL == Cell::gru) {
      C a[4][V], direct[V];
#pragma unroll
      for (int g = 0; g < 4; ++g) load(a[g], saved + g * p.Hp, V);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const C r = a[0][k], z = a[1][k], m = a[2][k], n_h = a[3][k];
        cells::gru_backward(r, z, m, n_h, h_before[k], dh[k], a[1][k], a[2][k], a[0][k], a[3][k], direct[k]);
      }
#pragma unroll
      for (int g = 0; g < 4; ++g) store(to + g * p.H, a[g], n);
      store(carried, direct, n);
    } else {
      C h[V];
      load(h, p.in.output.at(now.place, j) + unit, n);
#pragma unroll
      for (int k = 0; k < V; ++k) dh[k] = cells::rnn_backward<CELL == Cell::rnn_relu>(h[k], dh[k]);
      store(to, dh, n);
    }
  });
}

// --- the time loop ---

template <Cell CELL, class S>
class BackwardLoop {
  using C = Compute<S>;
  static constexpr int G = kGates<CELL>, planes = kPlanes<CELL>;

  const Backward& L;
  const Numbering all;
  Trace<S> trace;
  Scratch scratch;
  C *carry, *product, *d_full;

 public:
  BackwardLoop(const Backward& layer, Workspace& memory)
      : L(layer),
        all(layer),
        trace(allocate_trace<CELL, S>(layer, all.count, memory)),
        scratch(allocate_scratch(layer, memory)) {
    carry = memory.allocate<C>(G > 1 ? L.N * L.H : 0);
    product = memory.allocate<C>(L.N * L.P);
    d_full = memory.allocate<C>(L.weights[0].w_hr ? L.N * L.H : 0);
  }

  void run(int d, const Call& call) {
    steps(d, call);
    gradients(L, d, &trace, scratch, call);
  }

 private:
  void steps(int d, const Call& call) {
    const Weights& w = L.weights[d];
    const int64_t H = L.H, P = L.P, N = L.N;
    BackwardStep<S> p = {};
    p.H = H;
    p.Hp = padded(H);
    p.in.P = P;
    p.in.mask = mask_of(L);
    p.in.product = product;
    p.in.direct = CELL == Cell::gru ? carry : nullptr;
    p.in.grad_output = rows_of<const S>(L.grad_output, d * P);
    p.in.grad_h_n = offset<S>(L.grad_h_n, d * N * P);
    p.in.output = rows_of<const S>(L.output, d * P);
    p.in.h0 = offset<S>(L.h0, d * N * P);
    p.in.h_before = all.rows<S>(trace.h_before, P);
    p.in.grad_h0 = offset<S>(L.grad_h0, d * N * P);
    p.d_full = d_full;
    p.gates = rows_of<const S>(L.gates, d * L.gates_direction);
    p.cells = rows_of<const S>(L.cells, d * H);
    p.c0 = offset<S>(L.c0, d * N * H);
    p.grad_cells = rows_of<const S>(L.grad_cells, d * H);
    p.grad_c_n = offset<S>(L.grad_c_n, d * N * H);
    p.carry = carry;
    p.dgates = all.rows<S>(trace.dgates, planes * H);
    p.full = all.rows<S>(trace.full, H);
    p.grad_c0 = offset<S>(L.grad_c0, d * N * H);
    const Matrix w_hh = matrix(static_cast<const S*>(w.w_hh), G * H, P, P);
    const Matrix w_hr = matrix(static_cast<const S*>(w.w_hr), P, H, H);
    for (int64_t s = L.T - 1; s >= -1; --s) {  // -1: the gradient of the initial state
      p.in.step = step_of(L, d, s);
      const Moment& now = p.in.step.now;
      const int64_t rows = larger(now.active, p.in.step.after.active);
      if (d_full) {
        launch("incoming", incoming<S>, cover(rows, P, kPer16<S>, call.stream), p.in, all.rows<S>(trace.d_output, P));
        if (s >= 0)
          call.products->multiply(matrix(d_full, now.active, H, H), all.of(trace.d_output, now, P, P), w_hr, false);
      }
      launch("cell_backward", cell_backward<CELL, S>, cover(rows, H, kPer16<S>, call.stream), p);
      if (s < 0) break;
      const Matrix recurrent = all.of(trace.dgates + kHiddenPlane<CELL> * H, now, G * H, planes * H);
      call.products->multiply(matrix(product, now.active, P, P), recurrent, w_hh, false);
    }
  }
};

}  // namespace

const TierPass<Backward> stepwise_backward = loop_pass<BackwardLoop, Backward>();

}  // namespace cuda
}  // namespace lstmkern
