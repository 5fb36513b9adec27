// Stepwise forward. Per step: the matrix product h W_hh^T by the caller, then one kernel for the cell. With projection,
// a second product and a second kernel.
#include "inputs.h"

namespace lstmkern {
namespace cuda {
namespace {

// --- kernels ---

template <class S>
struct ForwardStep {
  using C = Compute<S>;
  int64_t H, Hp;
  Step step;
  Mask mask;
  Rows<const C> x_gates;  // [G, H]: x W_ih^T
  const C* h_gates;       // [active, G, H]: h W_hh^T
  const C* bias;          // [saved planes, H], see sum_biases
  S* h;                   // [N, H]: the state that the next step starts from; not with projection
  C* c;                   // [N, H]: likewise
  Rows<S> output;         // H columns; not with projection
  Rows<S> cells;          // H columns; may be absent
  Rows<S> gates;          // [4, Hp]; may be absent
  S* full;                // [active, H]: h before projection; null without
};

// Leaves h and c as the next step needs them: unchanged for a sequence that does not take this step, zero where the
// next step begins with a reset.
template <Cell CELL, class S>
LSTMKERN_KERNEL(kThreads)
cell_forward(ForwardStep<S> p) {
  using C = Compute<S>;
  constexpr int V = kPer16<S>, G = kGates<CELL>;
  const Moment &now = p.step.now, &after = p.step.after;
  for_pieces<V>(now.active > after.active ? now.active : after.active, p.H, [&](int64_t j, int64_t unit, int n) {
    const bool reset = p.mask.is_reset(after, j);
    S* const h_state = p.h + j * p.H + unit;
    C* const c_state = p.c + j * p.H + unit;
    const C zeros[V] = {};
    if (!p.mask.takes(now, j)) {
      if (j < now.active) {
        if (p.full)
          store(p.full + j * p.H + unit, zeros, n);
        else
          store(p.output.at(now.place, j) + unit, zeros, n);
        if (CELL == Cell::lstm && p.cells.data) store(p.cells.at(now.place, j) + unit, zeros, n);
      }
      if (reset && !p.full) store(h_state, zeros, n);
      if (reset && CELL == Cell::lstm) store(c_state, zeros, n);
      return;
    }
    const C *x = p.x_gates.at(now.place, j) + unit, *r = p.h_gates + j * G * p.H + unit, *b = p.bias + unit;
    S* const saved = p.gates.data ? p.gates.at(now.place, j) + unit : nullptr;
    C h[V];
    if constexpr (CELL == Cell::lstm) {
      C a[4][V], c[V], c_before[V];
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        load(a[g], x + g * p.H, n);
        add(a[g], r + g * p.H, n);
        add(a[g], b + g * p.H, n);
      }
      load(c_before, c_state, n);
#pragma unroll
      for (int k = 0; k < V; ++k) cells::lstm_forward(a[0][k], a[1][k], a[2][k], a[3][k], c_before[k], c[k], h[k]);
      if (p.cells.data) store(p.cells.at(now.place, j) + unit, c, n);
      clear_if(reset, c);
      store(c_state, c, n);
      if (saved) {
#pragma unroll
        for (int g = 0; g < 4; ++g) store(saved + g * p.Hp, a[g], V);
      }
    } else if constexpr (CELL == Cell::gru) {
      C a[4][V], h_before[V];
#pragma unroll
      for (int g = 0; g < 4; ++g) {
        load(a[g], b + g * p.H, n);
        if (g < 3) add(a[g], x + g * p.H, n);
        if (g != 2) add(a[g], r + (g < 2 ? g : 2) * p.H, n);
      }
      load(h_before, h_state, n);
#pragma unroll
      for (int k = 0; k < V; ++k) cells::gru_forward(a[0][k], a[1][k], a[2][k], a[3][k], h_before[k], h[k]);
      if (saved) {
#pragma unroll
        for (int g = 0; g < 4; ++g) store(saved + g * p.Hp, a[g], V);
      }
    } else {
      C a[V];
      load(a, x, n);
      add(a, r, n);
      add(a, b, n);
#pragma unroll
      for (int k = 0; k < V; ++k) h[k] = cells::rnn_forward<CELL == Cell::rnn_relu>(a[k]);
    }
    if (p.full) {
      store(p.full + j * p.H + unit, h, n);
      return;
    }
    store(p.output.at(now.place, j) + unit, h, n);
    clear_if(reset, h);
    store(h_state, h, n);
  });
}

// With projection: stores the step's output, which is the product full W_hr^T, [active, P].
template <class S>
LSTMKERN_KERNEL(kThreads)
projected(Step step, Mask mask, int64_t P, const Compute<S>* product, S* state, Rows<S> output) {
  using C = Compute<S>;
  constexpr int V = kPer16<S>;
  const Moment &now = step.now, &after = step.after;
  for_pieces<V>(now.active > after.active ? now.active : after.active, P, [&](int64_t j, int64_t column, int n) {
    const bool taken = mask.takes(now, j), reset = mask.is_reset(after, j);
    C h[V] = {};
    if (taken) load(h, product + j * P + column, n);
    if (j < now.active) store(output.at(now.place, j) + column, h, n);
    const C zeros[V] = {};
    if (reset)
      store(state + j * P + column, zeros, n);
    else if (taken)
      store(state + j * P + column, h, n);
  });
}

// to = from, [N, columns]; zero where step `first` begins with a reset.
template <class To, class From>
LSTMKERN_KERNEL(kThreads)
copy_state(To* to, const From* from, int64_t N, int64_t columns, Moment first, Mask mask) {
  constexpr int V = 4;
  for_pieces<V>(N, columns, [&](int64_t j, int64_t column, int n) {
    Compute<From> v[V] = {};
    if (!mask.is_reset(first, j)) load(v, from + j * columns + column, n);
    store(to + j * columns + column, v, n);
  });
}

// --- the time loop ---

template <Cell CELL, class S>
class ForwardLoop {
  using C = Compute<S>;
  static constexpr int G = kGates<CELL>;
  static constexpr bool kSeparateCell = sizeof(S) != sizeof(C);  // c in fp32, since c_n has 16 bits

  const Forward& L;
  const Numbering all;
  C *x_gates, *h_gates, *bias, *c, *product;
  S* full;

 public:
  ForwardLoop(const Forward& layer, Workspace& memory) : L(layer), all(layer) {
    const bool project = L.weights[0].w_hr != nullptr;
    x_gates = memory.allocate<C>(all.count * G * L.H);
    h_gates = memory.allocate<C>(L.N * G * L.H);
    bias = memory.allocate<C>(4 * L.H);
    c = memory.allocate<C>(CELL == Cell::lstm && kSeparateCell ? L.N * L.H : 0);
    full = memory.allocate<S>(project ? L.N * L.H : 0);
    product = memory.allocate<C>(project ? L.N * L.P : 0);
  }

  void run(int d, const Call& call) {
    const Weights& w = L.weights[d];
    const Mask mask = mask_of(L);
    const int64_t H = L.H, P = L.P, N = L.N;
    S* h = static_cast<S*>(L.h_n) + d * N * P;  // h_n, and c_n if it has the compute type, hold the current state
    S* c_n = offset<S>(L.c_n, d * N * H);
    C* cell = c;
    if constexpr (!kSeparateCell) cell = c_n;
    const Moment first = moment(L, d, 0), never = {-1, 0, 0};
    const S* h0 = static_cast<const S*>(L.h0) + d * N * P;
    launch("copy_state", copy_state<S, S>, cover(N, P, 4, call.stream), h, h0, N, P, first, mask);
    if (CELL == Cell::lstm) {
      const S* c0 = static_cast<const S*>(L.c0) + d * N * H;
      launch("copy_state", copy_state<C, S>, cover(N, H, 4, call.stream), cell, c0, N, H, first, mask);
    }
    const Matrix w_hh = matrix(static_cast<const S*>(w.w_hh), G * H, P, P);
    input_products(L, d, x_gates, bias, call);

    ForwardStep<S> p = {};
    p.H = H;
    p.Hp = padded(H);
    p.mask = mask;
    p.x_gates = all.rows<const C>(x_gates, G * H);
    p.h_gates = h_gates;
    p.bias = bias;
    p.h = h;
    p.c = cell;
    p.output = rows_of<S>(L.output, d * P);
    p.cells = rows_of<S>(L.cells, d * H);
    p.gates = rows_of<S>(L.gates, d * L.gates_direction);
    p.full = full;
    for (int64_t s = 0; s < L.T; ++s) {
      p.step = step_of(L, d, s);
      const int64_t active = p.step.now.active, rows = larger(active, p.step.after.active);
      call.products->multiply(matrix(h_gates, active, G * H, G * H), matrix(h, active, P, P), transpose(w_hh), false);
      launch("cell_forward", cell_forward<CELL, S>, cover(rows, H, kPer16<S>, call.stream), p);
      if (!full) continue;
      const Matrix w_hr = matrix(static_cast<const S*>(w.w_hr), P, H, H);
      call.products->multiply(matrix(product, active, P, P), matrix(full, active, H, H), transpose(w_hr), false);
      launch("projected", projected<S>, cover(rows, P, kPer16<S>, call.stream), p.step, mask, P,
             static_cast<const C*>(product), h, p.output);
    }
    if (CELL == Cell::lstm && kSeparateCell)
      launch("copy_state", copy_state<S, C>, cover(N, H, 4, call.stream), c_n, static_cast<const C*>(cell), N, H, never,
             mask);
  }
};

}  // namespace

const TierPass<Forward> stepwise_forward = loop_pass<ForwardLoop, Forward>();

}  // namespace cuda
}  // namespace lstmkern
