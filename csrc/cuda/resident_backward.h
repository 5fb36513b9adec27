// Backward for the resident tiers: a thread's part of each step, and the host's part around the loop.
#pragma once

#include "gradients.h"
#include "resident.h"

namespace lstmkern {
namespace cuda {

template <class S>
struct ResidentBackward {
  Plan plan;
  Times times;
  Mask mask;
  int64_t H, Hp;
  struct Side {  // a direction; what may be absent is null
    const S* w_hh;
    const Bytes16* packed;  // see pack_weights
    Rows<const S> grad_output, grad_cells, output, cells, gates;
    const S *grad_h_n, *grad_c_n, *h0, *c0;  // [N, H]
    S *grad_h0, *grad_c0;
    Rows<S> dgates;    // [planes, H]
    Rows<S> h_before;  // H columns
  } side[2];
};

template <Cell CELL, class S>
class ResidentBackwardLayer;

// Step 0 is the last of the direction's T; one more, T, only takes what reaches the initial state.
template <Cell CELL, class S>
struct BackwardPass {
  using Value = S;
  using Arguments = ResidentBackward<S>;
  using Host = ResidentBackwardLayer<CELL, S>;
  static constexpr int kProducts = 1, kParts = kGates<CELL>, kMoreSteps = 1;
  static constexpr int kKept = sizeof(S) == 2 ? 36 : 32;

  const ResidentBackward<S>& a;
  const typename ResidentBackward<S>::Side& side;
  const Seat seat;
  int64_t place = 0;  // of the step at hand
  // Of each of the thread's pairs. carry: LSTM dc, GRU what skips the product. The rest is of the coming step: gates
  // as saved, dh and dc from outside, the step's c, h and c as it found them.
  float carry[kElements], gates[kElements][4], dh[kElements], dc[kElements], c_now[kElements], h[kElements],
      c[kElements];
  bool inside[kElements], real[kElements], after[kElements], keeps[kElements];  // keeps: the step after took its state

  LSTMKERN_DEVICE BackwardPass(const ResidentBackward<S>& a, const Seat& seat)
      : a(a), side(a.side[seat.d]), seat(seat) {}

  LSTMKERN_DEVICE Element element(int e) const { return element_of(a.plan, seat, e, a.times.N, a.H); }

  // Row `unit` of W_hh^T, column of the state.
  static LSTMKERN_DEVICE S weight(const Arguments& a, int d, int, int64_t unit, int column) {
    const int64_t gate = column / a.plan.row, from = column % a.plan.row;
    if (unit >= a.H || gate >= kParts || from >= a.H) return S{};
    return a.side[d].w_hh[(gate * a.H + from) * a.H + unit];
  }

  LSTMKERN_DEVICE void begin(S* state) {
    for (int i = static_cast<int>(thread_rank()); i < a.plan.sequences * a.plan.depth; i += a.plan.warps() * 32)
      state[i / a.plan.depth * a.plan.stride + i % a.plan.depth] = S{};
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      carry[e] = 0;
      const Element at = element(e);
      if (!at.real || !a.mask.empty(at.j)) continue;
      const int64_t own = at.j * a.H + at.unit;
      if (side.grad_h0) side.grad_h0[own] = side.grad_h_n ? side.grad_h_n[own] : S{};
      if (side.grad_c0) side.grad_c0[own] = side.grad_c_n ? side.grad_c_n[own] : S{};
    }
  }

  LSTMKERN_DEVICE void ahead(int64_t step) {
    const int64_t s = a.times.T - 1 - step;
    const Moment now = a.times.at(seat.d, s), later = a.times.at(seat.d, s + 1), before = a.times.at(seat.d, s - 1);
    place = now.place;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const Element at = element(e);
      inside[e] = at.real && at.j < now.active;
      real[e] = at.real && a.mask.real(now, at.j);
      after[e] = at.real && a.mask.real(later, at.j);
      keeps[e] = after[e] && !a.mask.anew(later, at.j);
      if (!real[e]) continue;
      const int64_t own = at.j * a.H + at.unit;  // in [N, H]
      const bool anew = a.mask.anew(now, at.j), goes_on = a.mask.real(before, at.j);
      dh[e] = dc[e] = h[e] = c[e] = 0;
      if (side.grad_output.data) dh[e] += widen(side.grad_output.at(place, at.j)[at.unit]);
      if (side.grad_h_n && !after[e]) dh[e] += widen(side.grad_h_n[own]);
      if (!anew) h[e] = widen(goes_on ? side.output.at(before.place, at.j)[at.unit] : side.h0[own]);
      const S* const saved = side.gates.at(place, at.j) + at.unit;
#pragma unroll
      for (int g = 0; g < 4; ++g) gates[e][g] = widen(saved[g * a.Hp]);
      if constexpr (CELL == Cell::lstm) {
        if (side.grad_c_n && !after[e]) dc[e] += widen(side.grad_c_n[own]);
        if (side.grad_cells.data) dc[e] += widen(side.grad_cells.at(place, at.j)[at.unit]);
        c_now[e] = widen(side.cells.at(place, at.j)[at.unit]);
        if (!anew) c[e] = widen(goes_on ? side.cells.at(before.place, at.j)[at.unit] : side.c0[own]);
      }
    }
  }

  LSTMKERN_DEVICE void finish(int e, const Element& at, float (&sums)[1], float (&out)[kParts]) {
    const int64_t own = at.j * a.H + at.unit;
    // What comes back from the step after, if that step took what this one left.
    const float through = keeps[e] ? sums[0] + (CELL == Cell::gru ? carry[e] : 0) : 0;
    const float dc_through = keeps[e] ? carry[e] : 0;
    if (!real[e]) {
      if (after[e]) {  // the first step of the sequence is the one after this
        if (side.grad_h0) narrow(through, side.grad_h0[own]);
        if (CELL == Cell::lstm && side.grad_c0) narrow(dc_through, side.grad_c0[own]);
      }
      if (inside[e]) {  // padding: zeros, for the products over all rows
#pragma unroll
        for (int g = 0; g < kPlanes<CELL>; ++g) side.dgates.at(place, at.j)[g * a.H + at.unit] = S{};
        if (side.h_before.data) side.h_before.at(place, at.j)[at.unit] = S{};
      }
      return;
    }
    const float d = dh[e] + through;
    S* const to = side.dgates.at(place, at.j) + at.unit;
    if constexpr (CELL == Cell::lstm) {
      float dc_now = dc[e] + dc_through;
      cells::lstm_backward(gates[e][0], gates[e][1], gates[e][2], gates[e][3], c[e], tanh(c_now[e]), d, dc_now, out[0],
                           out[1], out[2], out[3]);
      carry[e] = dc_now;
#pragma unroll
      for (int g = 0; g < 4; ++g) narrow(out[g], to[g * a.H]);
    } else {
      float dn;
      cells::gru_backward(gates[e][0], gates[e][1], gates[e][2], gates[e][3], h[e], d, out[0], out[1], dn, out[2],
                          carry[e]);
      narrow(dn, to[0]);
#pragma unroll
      for (int g = 0; g < 3; ++g) narrow(out[g], to[(g + 1) * a.H]);
    }
    if (side.h_before.data) narrow(h[e], side.h_before.at(place, at.j)[at.unit]);
  }

  LSTMKERN_DEVICE void end() {}
};

// The host's part: memory for what the products after the loop take, and those products.
template <Cell CELL, class S>
class ResidentBackwardLayer {
  static constexpr int planes = kPlanes<CELL>;
  const Backward& L;
  const Numbering all;
  Trace<S> trace[2] = {};
  Scratch scratch;
  Tables tables;

 public:
  ResidentBackwardLayer(const Backward& layer, Carver& memory)
      : L(layer), all(layer), scratch(take_scratch(layer, memory)), tables(layer, memory) {
    for (int d = 0; d < L.D; ++d) trace[d] = take_trace<CELL, S>(L, all.count, memory);
  }

  ResidentBackward<S> prepare(const Plan& plan, const Call& call) {
    const int64_t H = L.H, N = L.N;
    ResidentBackward<S> a = {};
    a.plan = plan;
    a.times = tables.fill(call.stream);
    a.mask = mask_of(L);
    a.H = H;
    a.Hp = padded(H);
    for (int d = 0; d < L.D; ++d) {
      auto& side = a.side[d];
      side.w_hh = static_cast<const S*>(L.weights[d].w_hh);
      side.grad_output = rows_of<const S>(L.grad_output, d * H);
      side.grad_cells = rows_of<const S>(L.grad_cells, d * H);
      side.output = rows_of<const S>(L.output, d * H);
      side.cells = rows_of<const S>(L.cells, d * H);
      side.gates = rows_of<const S>(L.gates, d * L.gates_direction);
      side.grad_h_n = offset<S>(L.grad_h_n, d * N * H);
      side.grad_c_n = offset<S>(L.grad_c_n, d * N * H);
      side.h0 = offset<S>(L.h0, d * N * H);
      side.c0 = offset<S>(L.c0, d * N * H);
      side.grad_h0 = offset<S>(L.grad_h0, d * N * H);
      side.grad_c0 = offset<S>(L.grad_c0, d * N * H);
      side.dgates = all.template rows<S>(trace[d].dgates, planes * H);
      side.h_before = all.template rows<S>(trace[d].h_before, H);
    }
    return a;
  }

  void finish(const Call& call) {
    for (int d = 0; d < L.D; ++d) gradients(L, d, &trace[d], scratch, call);
  }
};

}  // namespace cuda
}  // namespace lstmkern
