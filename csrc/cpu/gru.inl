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

  template <class Lanes, class Sums>
  INLINE void begin(const Lanes& lanes, int r, int count, Sums&& sums, C* kept) {
    Vec<C> gate[4];  // reset, update, n, n_h
    lanes.gather(count, gate, [&](int k, Vec<C>(&of_row)[4]) INLINED {
      const auto row = sums(k);
      of_row[0] = row.of_h(0) + row.of_x(0);
      of_row[1] = row.of_h(1) + row.of_x(1);
      of_row[2] = row.of_x(2);
      of_row[3] = row.of_h(2) + load(bias_hn);
    });
    cells::gru_gates(gate[0], gate[1], gate[2], gate[3]);
    store(kept, gate[1]);
    store(kept + W, gate[2]);
    if (!save) return;
    lanes.scatter(count, gate, [&](int k, const Vec<C>(&of_row)[4]) INLINED {
      S* const to = saved(j + r + k, first_unit);
      store(to, of_row[0]);
      store(to + Hp, of_row[1]);
      store(to + 3 * Hp, of_row[3]);
    });
  }

  template <class Lanes>
  INLINE void end(const Lanes& lanes, int64_t j, int count, const C* kept, int64_t unit,
                  Vec<C> (&results)[2]) {  // h, n
    Vec<C> before[1];
    lanes.gather(count, before,
                 [&](int k, Vec<C>(&of_row)[1]) INLINED { of_row[0] = load(h_prev + (j + k) * h_ld + unit); });
    results[1] = load(kept + W);
    results[0] = cells::gru_output(load(kept), results[1], before[0]);
  }
  INLINE void store_rest(int64_t j, Vec<C> n, int64_t unit, int64_t, const HiddenRow<S>&) {
    if (save) store(saved(j, unit) + 2 * Hp, n);
  }
};

template <class S>
class GruBackward {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const int64_t Hp;
  const bool keep;
  const C* const carry;  // of the next step: the part of dh_prev through z
  const S *saved, *h_prev;

 public:
  static constexpr int kInputs = 6, kOutputs = 5;
  INLINE GruBackward(const BackwardPass<S>& pass, int64_t s, int64_t j)
      : Hp(pass.Hp),
        keep(j < pass.steps.ended(s) && !pass.cut(s, j)),
        carry(pass.carry + j * pass.Hp),
        saved(at<const S>(pass.L.gates, pass.L, pass.steps.t(s), j) + pass.d * pass.L.gates_direction),
        h_prev(pass.before(pass.L.output, pass.L.h0, pass.L.H, s, j)) {}

  // r, z, n, n_h, h_prev, the part of dh through the z of the next step
  INLINE void inputs(int64_t unit, int64_t n, Vec<C>* in) const {
#pragma GCC unroll 4
    for (int slot = 0; slot < 4; ++slot) in[slot] = load(saved + slot * Hp + unit);
    in[4] = h_prev ? load(h_prev + unit, n) : Vec<C>{};
    in[5] = keep ? load(carry + unit) : broadcast(C(-0.0));  // added, it changes nothing
  }
  static INLINE void derivative(Vec<C> dh, const Vec<C>* in, Vec<C>* out) {  // the planes, and in[5] of the step before
    cells::gru_backward<Vec<C>>(in[0], in[1], in[2], in[3], in[4], dh + in[5], out[GruPlanes::r], out[GruPlanes::z],
                                out[GruPlanes::n], out[GruPlanes::n_h], out[4]);
  }
  static INLINE void outputs(const BackwardPass<S>& pass, int64_t j, int64_t unit, int64_t n, const Vec<C>* out,
                             X* dgates, X*) {
#pragma GCC unroll 4
    for (int which = 0; which < 4; ++which) store(dgates + which * pass.plane, out[which], n);
    store(pass.carry + j * pass.Hp + unit, out[4]);
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
