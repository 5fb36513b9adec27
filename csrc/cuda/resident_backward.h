// Backward for the resident tiers: a thread's part of each step, and the host's part around the loop.
#pragma once

#include "gradients.h"
#include "resident_pass.h"

namespace lstmkern {
namespace cuda {

template <class S>
struct BackwardSide : ResidentSide<S, const S> {
  Rows<const S> grad_output, grad_cells;
  const S *grad_h_n, *grad_c_n;  // [N, H]
  S *grad_h0, *grad_c0;
  Rows<S> dgates;    // [planes, H]
  Rows<S> h_before;  // H columns
};
template <class S>
using ResidentBackward = ResidentArguments<BackwardSide<S>>;

// What is fetched of a step, all as it is stored: nothing is computed from it until the step needs it. h and c are the
// step's own; as those that it started from, the step before in time brings its.
template <class S>
struct BackwardFetched : StepAhead<S> {
  Raw<S> gates[kElements<S>][4], grad[kElements<S>], grad_c[kElements<S>], h[kElements<S>], c[kElements<S>];
};

template <Cell CELL, class S>
class ResidentBackwardLayer;

// Step 0 is the last of the direction's T; one more, T, only takes what reaches the initial state.
template <Cell CELL, class S>
struct BackwardPass : ResidentPass<S, ResidentBackward<S>, BackwardFetched<S>> {
  using Value = S;
  using Arguments = ResidentBackward<S>;
  using Host = ResidentBackwardLayer<CELL, S>;
  static constexpr int kProducts = 1, kParts = kGates<CELL>, kMoreSteps = 1, kBias = 0;
  static constexpr int kKept = sizeof(S) == 2 ? 18 : 32;

  using Base = ResidentPass<S, ResidentBackward<S>, BackwardFetched<S>>;
  using Base::a, Base::side, Base::seat, Base::at, Base::now, Base::next;
  using Base::Base, Base::real, Base::sequence, Base::state_index;

  // carry: LSTM dc, GRU what skips the product.
  float carry[kElements<S>] = {}, h_before[kElements<S>], dgates[kElements<S>][4];
  // What the step after this one is to the sequence: none of its own, one that began with zeros, or one that took the
  // state which this one left.
  enum After : unsigned { kNone, kApart, kTakes };
  unsigned after[kElements<S>] = {};  // kNone

  // Row `unit` of W_hh^T, column of the state.
  static LSTMKERN_DEVICE S weight(const Arguments& a, int d, int, int64_t unit, int column) {
    const int64_t gate = column / a.plan.row, from = column % a.plan.row;
    if (unit >= a.H || gate >= kParts || from >= a.H) return S{};
    return a.side[d].w_hh[(gate * a.H + from) * a.H + unit];
  }

  // From zeros. Of a sequence without steps, whatever reaches its final state reaches its initial one.
  LSTMKERN_DEVICE void begin(S*, float*) {
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      if (!real(e) || !a.mask.empty(sequence(e))) continue;
      const int64_t index = state_index(e);
      if (side.grad_h0) side.grad_h0[index] = side.grad_h_n ? side.grad_h_n[index] : S{};
      if (side.grad_c0) side.grad_c0[index] = side.grad_c_n ? side.grad_c_n[index] : S{};
    }
  }

  LSTMKERN_DEVICE void fetch(int step) {
    this->fetch_step(a.times.at(seat.d, a.times.T - 1 - step), [&](int e) {
      const unsigned place = next.place, j = sequence(e), unit = at[e].unit;
      if (side.grad_output.data) next.grad[e] = load_raw(side.grad_output.at(place, j) + unit);
      if (side.output.data) next.h[e] = load_raw(side.output.at(place, j) + unit);  // one step has none
      const S* const saved = side.gates.at(place, j) + unit;
#pragma unroll
      for (int g = 0; g < 4; ++g) next.gates[e][g] = load_raw(saved + g * a.Hp);
      if constexpr (CELL == Cell::lstm) {
        if (side.grad_cells.data) next.grad_c[e] = load_raw(side.grad_cells.at(place, j) + unit);
        next.c[e] = load_raw(side.cells.at(place, j) + unit);
      }
    });
  }
  LSTMKERN_DEVICE void advance() {  // not h: it is needed only as what the step after it in time started from
    const unsigned zero = unknown_zero(a.plan);
    now.take(next, zero);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      now.grad[e] = moved(next.grad[e], zero);
#pragma unroll
      for (int g = 0; g < 4; ++g) now.gates[e][g] = moved(next.gates[e][g], zero);
      if (CELL != Cell::lstm) continue;
      now.grad_c[e] = moved(next.grad_c[e], zero);
      now.c[e] = moved(next.c[e], zero);
    }
  }

  // The derivatives of the step's gates from dh, as far as it comes through the product.
  LSTMKERN_DEVICE void compute(int e, const float (&sums)[1], float (&out)[kParts]) {
    const int64_t index = state_index(e);
    // What comes back from the step after, if that step took what this one left.
    const bool taken = after[e] == kTakes, last = after[e] == kNone;
    const float through = taken ? sums[0] + (CELL == Cell::gru ? carry[e] : 0) : 0;
    const float dc_through = taken ? carry[e] : 0;
    const bool goes_on = next.kind.of(e) == kReal;
    if (now.kind.of(e) != kReal) {
      if (!last) {  // the first step of the sequence is the one after this
        if (side.grad_h0) narrow(through, side.grad_h0[index]);
        if (CELL == Cell::lstm && side.grad_c0) narrow(dc_through, side.grad_c0[index]);
      }
      after[e] = kNone;
      return;
    }
    float d = widen_raw<S>(now.grad[e]) + through;
    if (side.grad_h_n && last) d += widen(side.grad_h_n[index]);
    h_before[e] = now.reset[e] ? 0 : goes_on ? widen_raw<S>(next.h[e]) : widen(side.h0[index]);
    float g[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) g[k] = widen_raw<S>(now.gates[e][k]);
    if constexpr (CELL == Cell::lstm) {
      float dc = widen_raw<S>(now.grad_c[e]) + dc_through;
      if (side.grad_c_n && last) dc += widen(side.grad_c_n[index]);
      const float c_before = now.reset[e] ? 0 : goes_on ? widen_raw<S>(next.c[e]) : widen(side.c0[index]);
      cells::lstm_backward(g[0], g[1], g[2], g[3], c_before, tanh(widen_raw<S>(now.c[e])), d, dc, out[0], out[1],
                           out[2], out[3]);
      carry[e] = dc;
#pragma unroll
      for (int k = 0; k < 4; ++k) dgates[e][k] = out[k];
    } else {
      cells::gru_backward(g[0], g[1], g[2], g[3], h_before[e], d, out[0], out[1], dgates[e][0], out[2], carry[e]);
#pragma unroll
      for (int k = 0; k < 3; ++k) dgates[e][k + 1] = out[k];
    }
    after[e] = now.reset[e] ? kApart : kTakes;
  }

  // The step's results. Padding: zeros, for the products over all rows.
  LSTMKERN_DEVICE void store(int e) {
    if (now.kind.of(e) == kOutside) return;
    const unsigned j = sequence(e), unit = at[e].unit;
    const bool taken = now.kind.of(e) == kReal;
    S* const to = side.dgates.at(now.place, j) + unit;
#pragma unroll
    for (int g = 0; g < kPlanes<CELL>; ++g) narrow(taken ? dgates[e][g] : 0, to[g * a.H]);
    if (side.h_before.data) narrow(taken ? h_before[e] : 0, side.h_before.at(now.place, j)[unit]);
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
    auto a = resident_arguments<ResidentBackward<S>, S, const S>(L, plan, tables.fill(call.stream));
    const int64_t H = L.H, N = L.N;
    for (int d = 0; d < L.D; ++d) {
      BackwardSide<S>& side = a.side[d];
      side.grad_output = rows_of<const S>(L.grad_output, d * H);
      side.grad_cells = rows_of<const S>(L.grad_cells, d * H);
      side.grad_h_n = offset<S>(L.grad_h_n, d * N * H);
      side.grad_c_n = offset<S>(L.grad_c_n, d * N * H);
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
