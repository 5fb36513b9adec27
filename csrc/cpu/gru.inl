// The GRU on the CPU: included by <instruction set>/gru.cpp.
namespace lstmkern {
namespace cpu {
namespace LSTMKERN_VARIANT {
// clang-format off: each builds on those before it
#include "cell.inl"
#include "../cells/gru.h"
// clang-format on

template <class S>
class GruForward {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  static constexpr int W = width<C>;
  const ForwardPass<S>& pass;
  const int64_t s, j, first_unit, Hp, h_ld;
  const X* const h_prev;
  const C* const bias_hn;
  const bool save;

  INLINE S* saved(int64_t j, int64_t unit) const {
    return at<S>(pass.L.gates, pass.L, pass.steps.t(s), j) + pass.d * pass.L.gates_direction + unit;
  }

 public:
  static constexpr int kGates = 3;
  INLINE GruForward(const ForwardPass<S>& pass, const ForwardTile<S>& tile)
      : pass(pass),
        s(tile.hidden.s),
        j(tile.j),
        first_unit(tile.unit),
        Hp(pass.Hp),
        h_ld(pass.h_ld),
        h_prev(pass.h[tile.hidden.s & 1] + pass.x_columns),
        bias_hn(pass.bias_hn + tile.unit),
        save(pass.L.gates.data != nullptr) {}

  template <class Sums>
  INLINE void begin(int r, const Sums& sums, C* kept) {
    Vec<C> reset = sums.of_h(0) + sums.of_x(0), update = sums.of_h(1) + sums.of_x(1), n = sums.of_x(2),
           n_h = sums.of_h(2) + load(bias_hn);
    cells::gru_gates(reset, update, n, n_h);
    store(kept, update);
    store(kept + W, n);
    if (!save) return;
    S* const to = saved(j + r, first_unit);
    store(to, reset);
    store(to + Hp, update);
    store(to + 3 * Hp, n_h);
  }

  INLINE Vec<C> end(int64_t j, const C* kept, int64_t unit, int64_t, const HiddenRow<S>&) {
    Vec<C> n = load(kept + W);
    const Vec<C> h = cells::gru_output(load(kept), n, load(h_prev + j * h_ld + unit));
    if (save) store(saved(j, unit) + 2 * Hp, n);
    return h;
  }
};

template <class S>
class GruBackward {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const int64_t Hp, plane;
  const bool keep;
  C* const carry;  // of the next step: the part of dh_prev through z
  const S *saved, *h_prev;

 public:
  INLINE GruBackward(const BackwardPass<S>& pass, int64_t s, int64_t j)
      : Hp(pass.Hp),
        plane(pass.plane),
        keep(j < pass.steps.ended(s) && !pass.cut(s, j)),
        carry(pass.carry + j * pass.Hp),
        saved(at<const S>(pass.L.gates, pass.L, pass.steps.t(s), j) + pass.d * pass.L.gates_direction),
        h_prev(pass.before(pass.L.output, pass.L.h0, pass.L.H, s, j)) {}

  INLINE void step(Vec<C> dh, int64_t unit, int64_t n, X* dgates, X*) {
    if (keep) dh += load(carry + unit);
    Vec<C> dr, dz, dn, dn_h, direct;
    const S* const gate = saved + unit;
    cells::gru_backward<Vec<C>>(load(gate), load(gate + Hp), load(gate + 2 * Hp), load(gate + 3 * Hp),
                                h_prev ? load(h_prev + unit, n) : Vec<C>{}, dh, dr, dz, dn, dn_h, direct);
    store(dgates + GruPlanes::r * plane, dr, n);
    store(dgates + GruPlanes::z * plane, dz, n);
    store(dgates + GruPlanes::n * plane, dn, n);
    store(dgates + GruPlanes::n_h * plane, dn_h, n);
    store(carry + unit, direct);
  }
};

template <class S>
CellKernels<S> gru_kernels() {
  return {finish_forward<GruForward, S>, finish_backward<GruBackward, S>};
}
LSTMKERN_FOR_EVERY_TYPE(gru_kernels)

}  // namespace LSTMKERN_VARIANT
}  // namespace cpu
}  // namespace lstmkern
