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

  template <class Sums>
  INLINE void begin(int r, const Sums& sums, C* kept) {
    Vec<C> gate[4], c_now;
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) gate[g] = sums.of_h(g) + sums.of_x(g);
    C* const state = c + (j + r) * Hp + first_unit;
    cells::lstm_state(gate[0], gate[1], gate[2], gate[3], load(state), c_now);
    store(state, c_now);
    store(kept, c_now);
    store(kept + W, gate[3]);
    if (!save) return;
    S* const saved = at<S>(pass.L.gates, pass.L, pass.steps.t(s), j + r) + pass.d * pass.L.gates_direction + first_unit;
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) store(saved + g * Hp, gate[g]);
  }

  INLINE Vec<C> end(int64_t j, const C* kept, int64_t unit, int64_t n, const HiddenRow<S>& hidden) {
    const Vec<C> c_now = load(kept), h = cells::lstm_output(load(kept + W), c_now);
    if (keep_cells) store(at<S>(pass.L.cells, pass.L, pass.steps.t(s), j) + pass.d * pass.L.H + unit, c_now, n);
    if (__builtin_expect(hidden.h_n != nullptr, 0))
      store(static_cast<S*>(pass.L.c_n) + (pass.d * pass.L.N + pass.L.order[j]) * pass.L.H + unit, c_now, n);
    if (__builtin_expect(hidden.reset, 0)) store(c + j * Hp + unit, Vec<C>{});
    return h;
  }
};

template <class S>
class LstmBackward {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const int64_t Hp, plane;
  const bool keep;
  C* const carry;                            // dc of the next step
  const S *saved, *c_now, *c_prev;           // c_prev may be null: zero
  const S *grad_c_n = nullptr, *grad_cells;  // null: none

 public:
  INLINE LstmBackward(const BackwardPass<S>& pass, int64_t s, int64_t j)
      : Hp(pass.Hp),
        plane(pass.plane),
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

  INLINE void step(Vec<C> dh, int64_t unit, int64_t n, X* dgates, X* full) {
    Vec<C> dc = keep ? load(carry + unit) : Vec<C>{}, di, df, dg, d_o;
    if (grad_c_n) dc = load(grad_c_n + unit, n);
    if (grad_cells) dc += load(grad_cells + unit, n);
    const S* const gate = saved + unit;
    const Vec<C> o = load(gate + 3 * Hp), tanh_c = tanh(load(c_now + unit, n));
    cells::lstm_backward<Vec<C>>(load(gate), load(gate + Hp), load(gate + 2 * Hp), o,
                                 c_prev ? load(c_prev + unit, n) : Vec<C>{}, tanh_c, dh, dc, di, df, dg, d_o);
    store(dgates, di, n);
    store(dgates + plane, df, n);
    store(dgates + 2 * plane, dg, n);
    store(dgates + 3 * plane, d_o, n);
    store(carry + unit, dc);
    if (full) store(full, o * tanh_c);
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
