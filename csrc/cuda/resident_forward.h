// Forward for the resident tiers: the work of a thread in each step, and the work of the host before the loop.
#pragma once

#include "resident_pass.h"

namespace lstmkern {
namespace cuda {

template <class S>
struct ForwardSide : ResidentSide<S, S> {
  Rows<const float> x_gates;  // [G, H]: x W_ih^T
  const float* bias;          // [saved planes, H], see sum_biases
  S *h_n, *c_n;               // [N, H]
};
template <class S>
using ResidentForward = ResidentArguments<ForwardSide<S>>;

// What is prefetched of a step. Nothing is computed from it until the step needs it, because a load is waited for where
// its value is first used.
template <Cell CELL, class S>
struct ForwardFetched : StepAhead<S> {
  float x[kElements<S>][kGates<CELL>];
};

template <Cell CELL, class S>
class ResidentForwardLayer;

template <Cell CELL, class S>
struct ForwardPass : ResidentPass<S, ResidentForward<S>, ForwardFetched<CELL, S>> {
  using Value = S;
  using Arguments = ResidentForward<S>;
  using Host = ResidentForwardLayer<CELL, S>;
  static constexpr int kProducts = kGates<CELL>, kParts = 1, kExtraSteps = 0, kBias = 4;
  static constexpr int kKept = (sizeof(S) == 2 ? 16 : 28) / kProducts;

  using Base = typename ForwardPass::ResidentPass;
  using Base::a, Base::side, Base::role, Base::at, Base::now, Base::next;
  using Base::Base, Base::exists, Base::sequence, Base::state_index;

  float h[kElements<S>], c[kElements<S>], gates[kElements<S>][4];  // the state, and the gates of the current step

  // The weight in row `unit` of a product's matrix (a gate) that is multiplied with column `column` of the state.
  static LSTMKERN_DEVICE S weight(const Arguments& a, int d, int product, int64_t unit, int64_t column) {
    if (unit >= a.H || column >= a.H) return S{};
    return a.side[d].w_hh[(product * a.H + unit) * a.H + column];
  }

  // Sets the state that the first step starts from: the whole team's in shared memory, and this thread's own in
  // registers. `bias` receives what the sums of the block's units start from. A GRU's n_x is not added to a sum of
  // products and comes last.
  LSTMKERN_DEVICE void begin(S* state, float* bias) {
    const Moment first = a.times.at(role.d, 0);
    for (int i = static_cast<int>(thread_rank()); i < a.plan.sequences * a.plan.row; i += a.plan.warps() * 32) {
      const int n = i / a.plan.row, unit = i % a.plan.row;
      const int64_t j = role.first + n;
      const bool nonzero = n < role.sequences && unit < a.H && !a.mask.is_reset(first, j);
      state[n * a.plan.stride + unit] = nonzero ? side.h0[j * a.H + unit] : S{};
    }
    for (int i = static_cast<int>(thread_rank()); i < a.plan.units * 4; i += a.plan.warps() * 32) {
      const int g = CELL == Cell::gru && i % 4 >= 2 ? 5 - i % 4 : i % 4;
      const int64_t unit = role.rank * a.plan.units + i / 4;
      bias[i] = unit < a.H ? side.bias[g * a.H + unit] : 0;
    }
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      const int64_t index = state_index(e);
      h[e] = exists(e) ? widen(side.h0[index]) : 0;
      c[e] = CELL == Cell::lstm && exists(e) ? widen(side.c0[index]) : 0;
    }
  }

  LSTMKERN_DEVICE void fetch(int s) {
    this->fetch_step(a.times.at(role.d, s), [&](int e) {
      const float* const from = side.x_gates.at(next.place, sequence(e)) + at[e].unit;
#pragma unroll
      for (int g = 0; g < kProducts; ++g) next.x[e][g] = from[g * a.H];
    });
  }
  LSTMKERN_DEVICE void advance() {
    const unsigned zero = opaque_zero(a.plan);
    now.move_from(next, zero);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
#pragma unroll
      for (int g = 0; g < kProducts; ++g) now.x[e][g] = opaque_copy(next.x[e][g], zero);
    }
  }

  // Computes the step's gates and state from the sums, which include the biases. `out`: the state that the next step
  // starts from.
  LSTMKERN_DEVICE void compute(int e, const float (&sums)[4], float (&out)[kParts]) {
    if (now.kind.of(e) == kReal) {
      if (now.reset[e]) h[e] = c[e] = 0;
      float (&g)[4] = gates[e];
      const float (&x)[kProducts] = now.x[e];
      if constexpr (CELL == Cell::lstm) {
        float c_now;
#pragma unroll
        for (int k = 0; k < 4; ++k) g[k] = sums[k] + x[k];
        cells::lstm_forward(g[0], g[1], g[2], g[3], c[e], c_now, h[e]);
        c[e] = c_now;
      } else {
        const float before = h[e];
        g[0] = sums[0] + x[0];
        g[1] = sums[1] + x[1];
        g[2] = sums[3] + x[2];
        g[3] = sums[2];
        cells::gru_forward(g[0], g[1], g[2], g[3], before, h[e]);
      }
      S stored;  // continue with the rounded h, which is the output, as in all tiers
      narrow(h[e], stored);
      h[e] = widen(stored);
    }
    out[0] = next.kind.of(e) == kReal && next.reset[e] ? 0 : h[e];
  }

  // Stores the step's results.
  LSTMKERN_DEVICE void store(int e) {
    if (now.kind.of(e) == kOutside) return;
    const unsigned j = sequence(e), unit = at[e].unit;
    const bool taken = now.kind.of(e) == kReal;
    narrow(taken ? h[e] : 0, side.output.at(now.place, j)[unit]);
    if (CELL == Cell::lstm && side.cells.data) narrow(taken ? c[e] : 0, side.cells.at(now.place, j)[unit]);
    if (!side.gates.data || !taken) return;
    S* const to = side.gates.at(now.place, j) + unit;
#pragma unroll
    for (int g = 0; g < 4; ++g) narrow(gates[e][g], to[g * a.Hp]);
  }

  LSTMKERN_DEVICE void end() {
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      if (!exists(e)) continue;
      const int64_t index = state_index(e);
      narrow(h[e], side.h_n[index]);
      if (CELL == Cell::lstm) narrow(c[e], side.c_n[index]);
    }
  }
};

// The work of the host: input products and biases before the loop.
template <Cell CELL, class S>
class ResidentForwardLayer {
  static constexpr int G = kGates<CELL>;
  const Forward& L;
  const Numbering all;
  float *x_gates[2] = {}, *bias[2] = {};
  Tables tables;

 public:
  ResidentForwardLayer(const Forward& layer, Workspace& memory) : L(layer), all(layer), tables(layer, memory) {
    for (int d = 0; d < L.D; ++d) {
      x_gates[d] = memory.allocate<float>(all.count * G * L.H);
      bias[d] = memory.allocate<float>(4 * L.H);
    }
  }

  ResidentForward<S> prepare(const Plan& plan, const Call& call) {
    auto a = resident_arguments<ResidentForward<S>, S, S>(L, plan, tables.fill(call.stream));
    for (int d = 0; d < L.D; ++d) {
      input_products(L, d, x_gates[d], bias[d], call);
      ForwardSide<S>& side = a.side[d];
      side.x_gates = all.template rows<const float>(x_gates[d], G * L.H);
      side.bias = bias[d];
      side.h_n = offset<S>(L.h_n, d * L.N * L.H);
      side.c_n = offset<S>(L.c_n, d * L.N * L.H);
    }
    return a;
  }

  void finish(const Call&) {}
};

}  // namespace cuda
}  // namespace lstmkern
