// Backward for the resident tiers: the work of a thread in each step, and the work of the host around the loop.
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

// What is prefetched of a step, in the type in which it is stored; nothing is computed from it until the step needs it.
// h and c are the results of the step itself. The h and c that a step started from are those of the step before it.
template <class S>
struct BackwardFetched : StepAhead<S> {
  Raw<S> gates[kElements<S>][4], grad[kElements<S>], grad_c[kElements<S>], h[kElements<S>], c[kElements<S>];
};

template <Cell CELL, class S>
class ResidentBackwardLayer;

// Step 0 of the loop is the last of the direction's T steps. The extra step T computes the gradient of the initial
// state.
template <Cell CELL, class S>
struct BackwardPass : ResidentPass<S, ResidentBackward<S>, BackwardFetched<S>> {
  using Value = S;
  using Arguments = ResidentBackward<S>;
  using Host = ResidentBackwardLayer<CELL, S>;
  static constexpr int kProducts = 1, kParts = kGates<CELL>, kExtraSteps = 1, kBias = 0;
  static constexpr int kKept = sizeof(S) == 2 ? 18 : 32;

  using Base = typename BackwardPass::ResidentPass;
  using Base::a, Base::side, Base::role, Base::at, Base::now, Base::next;
  using Base::Base, Base::exists, Base::sequence, Base::state_index;

  // carry: for an LSTM dc, for a GRU the part of dh that does not go through the product.
  float carry[kElements<S>] = {}, h_before[kElements<S>], dgates[kElements<S>][4];
  // The step after this one: none in the sequence, one that started from a zero state, or one that used this step's
  // state.
  enum After : unsigned { kNoStep, kRestarts, kContinues };
  unsigned after[kElements<S>] = {};  // kNoStep

  // The weight in row `unit` of W_hh^T that is multiplied with column `column` of the state.
  static LSTMKERN_DEVICE S weight(const Arguments& a, int d, int, int64_t unit, int column) {
    const int64_t gate = column / a.plan.row, from = column % a.plan.row;
    if (unit >= a.H || gate >= kParts || from >= a.H) return S{};
    return a.side[d].w_hh[(gate * a.H + from) * a.H + unit];
  }

  // The state starts from zeros. If a sequence has no steps, the gradient of its final state is that of its initial
  // state.
  LSTMKERN_DEVICE void begin(S*, float*) {
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      if (!exists(e) || !a.mask.empty(sequence(e))) continue;
      const int64_t index = state_index(e);
      if (side.grad_h0) side.grad_h0[index] = side.grad_h_n ? side.grad_h_n[index] : S{};
      if (side.grad_c0) side.grad_c0[index] = side.grad_c_n ? side.grad_c_n[index] : S{};
    }
  }

  LSTMKERN_DEVICE void fetch(int step) {
    this->fetch_step(a.times.at(role.d, a.times.T - 1 - step), [&](int e) {
      const unsigned place = next.place, j = sequence(e), unit = at[e].unit;
      if (side.grad_output.data) next.grad[e] = load_raw(side.grad_output.at(place, j) + unit);
      if (side.output.data) next.h[e] = load_raw(side.output.at(place, j) + unit);  // absent if T is 1
      const S* const saved = side.gates.at(place, j) + unit;
#pragma unroll
      for (int g = 0; g < 4; ++g) next.gates[e][g] = load_raw(saved + g * a.Hp);
      if constexpr (CELL == Cell::lstm) {
        if (side.grad_cells.data) next.grad_c[e] = load_raw(side.grad_cells.at(place, j) + unit);
        next.c[e] = load_raw(side.cells.at(place, j) + unit);
      }
    });
  }
  LSTMKERN_DEVICE void advance() {  // not h: only the step after it in time needs it
    const unsigned zero = opaque_zero(a.plan);
    now.move_from(next, zero);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      now.grad[e] = opaque_copy(next.grad[e], zero);
#pragma unroll
      for (int g = 0; g < 4; ++g) now.gates[e][g] = opaque_copy(next.gates[e][g], zero);
      if (CELL != Cell::lstm) continue;
      now.grad_c[e] = opaque_copy(next.grad_c[e], zero);
      now.c[e] = opaque_copy(next.c[e], zero);
    }
  }

  // Computes the gradients of the step's gates. `sums` is dh as far as it comes through the product.
  LSTMKERN_DEVICE void compute(int e, const float (&sums)[1], float (&out)[kParts]) {
    const int64_t index = state_index(e);
    // What flows back from the step after, if that step used this step's state.
    const bool taken = after[e] == kContinues, last = after[e] == kNoStep;
    const float from_next = taken ? sums[0] + (CELL == Cell::gru ? carry[e] : 0) : 0;
    const float dc_from_next = taken ? carry[e] : 0;
    const bool has_previous = next.kind.of(e) == kReal;
    if (now.kind.of(e) != kReal) {
      if (!last) {  // the step after this one is the sequence's first
        if (side.grad_h0) narrow(from_next, side.grad_h0[index]);
        if (CELL == Cell::lstm && side.grad_c0) narrow(dc_from_next, side.grad_c0[index]);
      }
      after[e] = kNoStep;
      return;
    }
    float d = widen_raw<S>(now.grad[e]) + from_next;
    if (side.grad_h_n && last) d += widen(side.grad_h_n[index]);
    h_before[e] = now.reset[e] ? 0 : has_previous ? widen_raw<S>(next.h[e]) : widen(side.h0[index]);
    float g[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) g[k] = widen_raw<S>(now.gates[e][k]);
    if constexpr (CELL == Cell::lstm) {
      float dc = widen_raw<S>(now.grad_c[e]) + dc_from_next;
      if (side.grad_c_n && last) dc += widen(side.grad_c_n[index]);
      const float c_before = now.reset[e] ? 0 : has_previous ? widen_raw<S>(next.c[e]) : widen(side.c0[index]);
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
    after[e] = now.reset[e] ? kRestarts : kContinues;
  }

  // Stores the step's results. Padding gets zeros, since the matrix products read all rows.
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

// The work of the host: arrays for the matrix products after the loop, and these products.
template <Cell CELL, class S>
class ResidentBackwardLayer {
  static constexpr int planes = kPlanes<CELL>;
  const Backward& L;
  const Numbering all;
  Trace<S> trace[2] = {};
  Scratch scratch;
  Tables tables;

 public:
  ResidentBackwardLayer(const Backward& layer, Workspace& memory)
      : L(layer), all(layer), scratch(allocate_scratch(layer, memory)), tables(layer, memory) {
    for (int d = 0; d < L.D; ++d) trace[d] = allocate_trace<CELL, S>(L, all.count, memory);
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
