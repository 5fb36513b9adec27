// The LSTM on the CPU: included by <instruction set>/lstm.cpp.
namespace lstmkern {
namespace cpu {
namespace LSTMKERN_VARIANT {
// clang-format off: each builds on those before it
#include "cell.inl"
#include "../cells/lstm.h"
// clang-format on

template <class S>
class LstmForward {
  using C = typename Types<S>::Sum;
  static constexpr int W = width<C>;
  const ForwardPass<S>& pass;
  const int64_t s, j, first_unit, Hp;
  C* const c;
  const bool save, keep_cells;

 public:
  static constexpr int kGates = 4;
  INLINE LstmForward(const ForwardPass<S>& pass, const ForwardTile<S>& tile)
      : pass(pass),
        s(tile.hidden.s),
        j(tile.j),
        first_unit(tile.unit),
        Hp(pass.Hp),
        c(pass.c),
        save(pass.L.gates.data != nullptr),
        keep_cells(pass.L.cells.data != nullptr) {}

  template <class Lanes, class Sums>
  INLINE void begin(const Lanes& lanes, int r, int count, Sums&& sums, C* kept) {
    Vec<C> in[5], c_now[1];
    C* const state = c + (j + r) * Hp + first_unit;
    lanes.gather(count, in, [&](int k, Vec<C>(&of_row)[5]) INLINED {
      const auto row = sums(k);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) of_row[g] = row.of_h(g) + row.of_x(g);
      of_row[4] = load(state + k * Hp);
    });
    cells::lstm_state(in[0], in[1], in[2], in[3], in[4], c_now[0]);
    lanes.scatter(count, c_now, [&](int k, const Vec<C>(&of_row)[1]) INLINED { store(state + k * Hp, of_row[0]); });
    store(kept, c_now[0]);
    store(kept + W, in[3]);
    if (!save) return;
    lanes.scatter(count, in, [&](int k, const Vec<C>(&of_row)[5]) INLINED {
      S* const saved = at<S>(pass.L.gates, pass.L, pass.steps.t(s), j + r + k) + pass.d * pass.L.gates_direction;
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) store(saved + g * Hp + first_unit, of_row[g]);
    });
  }

  template <class Lanes>
  INLINE void end(const Lanes&, int64_t, int, const C* kept, int64_t, Vec<C> (&results)[2]) {  // h, c
    results[1] = load(kept);
    results[0] = cells::lstm_output(load(kept + W), results[1]);
  }
  INLINE void store_rest(int64_t j, Vec<C> c_now, int64_t unit, int64_t n, const HiddenRow<S>& to) {
    if (keep_cells) store(at<S>(pass.L.cells, pass.L, pass.steps.t(s), j) + pass.d * pass.L.H + unit, c_now, n);
    if (__builtin_expect(to.h_n != nullptr, 0))
      store(static_cast<S*>(pass.L.c_n) + (pass.d * pass.L.N + pass.L.order[j]) * pass.L.H + unit, c_now, n);
    if (__builtin_expect(to.reset, 0)) store(c + j * Hp + unit, Vec<C>{});
  }
};

template <class S>
class LstmBackward {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const int64_t Hp;
  const bool keep;
  const C* const carry;                      // dc of the next step
  const S *saved, *c_now, *c_prev;           // c_prev may be null: zero
  const S *grad_c_n = nullptr, *grad_cells;  // null: none

 public:
  static constexpr int kInputs = 7, kOutputs = 6;
  INLINE LstmBackward(const BackwardPass<S>& pass, int64_t s, int64_t j)
      : Hp(pass.Hp),
        keep(j < pass.steps.ended(s) && !pass.cut(s, j)),
        carry(pass.carry + j * pass.Hp),
        c_prev(pass.before(pass.L.cells, pass.L.c0, pass.L.H, s, j)) {
    const Backward& L = pass.L;
    const int64_t t = pass.steps.t(s);
    saved = at<const S>(L.gates, L, t, j) + pass.d * L.gates_direction;
    c_now = at<const S>(L.cells, L, t, j) + pass.d * L.H;
    if (j >= pass.steps.ended(s) && L.grad_c_n)
      grad_c_n = static_cast<const S*>(L.grad_c_n) + (pass.d * L.N + L.order[j]) * L.H;
    grad_cells = L.grad_cells.data ? at<const S>(L.grad_cells, L, t, j) + pass.d * L.H : nullptr;
  }

  // dc, c_prev, c, i, f, g, o
  INLINE void inputs(int64_t unit, int64_t n, Vec<C>* in) const {
    in[0] = keep ? load(carry + unit) : Vec<C>{};
    if (grad_c_n) in[0] = load(grad_c_n + unit, n);
    if (grad_cells) in[0] += load(grad_cells + unit, n);
    in[1] = c_prev ? load(c_prev + unit, n) : Vec<C>{};
    in[2] = load(c_now + unit, n);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) in[3 + g] = load(saved + g * Hp + unit);
  }
  // di, df, dg, do, dc of the step before, h before a projection
  static INLINE void derivative(Vec<C> dh, const Vec<C>* in, Vec<C>* out) {
    const Vec<C> tanh_c = tanh(in[2]);
    out[4] = in[0];
    cells::lstm_backward<Vec<C>>(in[3], in[4], in[5], in[6], in[1], tanh_c, dh, out[4], out[0], out[1], out[2], out[3]);
    out[5] = in[6] * tanh_c;
  }
  static INLINE void outputs(const BackwardPass<S>& pass, int64_t j, int64_t unit, int64_t n, const Vec<C>* out,
                             X* dgates, X* full) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) store(dgates + g * pass.plane, out[g], n);
    store(pass.carry + j * pass.Hp + unit, out[4]);
    if (full) store(full, out[5]);
  }
};

template <class S>
CellKernels<S> lstm_kernels() {
  return {finish_forward<LstmForward, S>, finish_backward<LstmBackward, S>};
}
LSTMKERN_FOR_EVERY_TYPE(lstm_kernels)

}  // namespace LSTMKERN_VARIANT
}  // namespace cpu
}  // namespace lstmkern
