// Forward for the resident tiers: a thread's part of each step, and the host's part around the loop.
#pragma once

#include "resident.h"

namespace lstmkern {
namespace cuda {

template <class S>
struct ResidentForward {
  Plan plan;
  Times times;
  Mask mask;
  int64_t H, Hp;
  struct Side {  // a direction
    const S* w_hh;
    const Bytes16* packed;      // see pack_weights
    Rows<const float> x_gates;  // [G, H]: x W_ih^T
    const float* bias;          // [saved planes, H], see sum_biases
    const S *h0, *c0;           // [N, H]
    S *h_n, *c_n;               // [N, H]
    Rows<S> output, cells, gates;
  } side[2];
};

template <Cell CELL, class S>
class ResidentForwardLayer;

template <Cell CELL, class S>
struct ForwardPass {
  using Value = S;
  using Arguments = ResidentForward<S>;
  using Host = ResidentForwardLayer<CELL, S>;
  static constexpr int kProducts = kGates<CELL>, kParts = 1, kMoreSteps = 0;
  static constexpr int kKept = (sizeof(S) == 2 ? 32 : 24) / kProducts;
  static constexpr int kInputs = CELL == Cell::gru ? 4 : kProducts;  // GRU: b_hn apart

  const ResidentForward<S>& a;
  const typename ResidentForward<S>::Side& side;
  const Seat seat;
  int64_t place = 0;  // of the step at hand
  // Of each of the thread's pairs: its state, and what is known of the coming step before its sums are.
  float h[kElements], c[kElements], x[kElements][kInputs];
  bool inside[kElements], real[kElements], anew[kElements];  // in the step; not padding; zeroed after it

  LSTMKERN_DEVICE ForwardPass(const ResidentForward<S>& a, const Seat& seat) : a(a), side(a.side[seat.d]), seat(seat) {}

  LSTMKERN_DEVICE Element element(int e) const { return element_of(a.plan, seat, e, a.times.N, a.H); }

  // Of the matrix of a product (a gate): row `unit`, column of the state.
  static LSTMKERN_DEVICE S weight(const Arguments& a, int d, int product, int64_t unit, int64_t column) {
    if (unit >= a.H || column >= a.H) return S{};
    return a.side[d].w_hh[(product * a.H + unit) * a.H + column];
  }

  // The state that the first step starts from: all of the team's, and this thread's own.
  LSTMKERN_DEVICE void begin(S* state) {
    const Moment first = a.times.at(seat.d, 0);
    for (int i = static_cast<int>(thread_rank()); i < a.plan.sequences * a.plan.row; i += a.plan.warps() * 32) {
      const int n = i / a.plan.row, unit = i % a.plan.row;
      const int64_t j = static_cast<int64_t>(seat.batch) * a.plan.sequences + n;
      const bool there = j < a.times.N && unit < a.H && !a.mask.anew(first, j);
      state[n * a.plan.stride + unit] = there ? side.h0[j * a.H + unit] : S{};
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      h[e] = c[e] = 0;
      const Element x = element(e);
      if (!x.real || a.mask.anew(first, x.j)) continue;
      h[e] = widen(side.h0[x.j * a.H + x.unit]);
      if (CELL == Cell::lstm) c[e] = widen(side.c0[x.j * a.H + x.unit]);
    }
  }

  LSTMKERN_DEVICE void ahead(int64_t s) {
    const Moment now = a.times.at(seat.d, s), after = a.times.at(seat.d, s + 1);
    place = now.place;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const Element at = element(e);
      inside[e] = at.real && at.j < now.active;
      real[e] = at.real && a.mask.real(now, at.j);
      anew[e] = at.real && a.mask.anew(after, at.j);
      if (!real[e]) continue;
      const float *from = side.x_gates.at(place, at.j) + at.unit, *bias = side.bias + at.unit;
#pragma unroll
      for (int g = 0; g < kInputs; ++g) x[e][g] = bias[g * a.H] + (g < kProducts ? from[g * a.H] : 0);
    }
  }

  LSTMKERN_DEVICE void finish(int e, const Element& at, float (&sums)[kProducts], float (&out)[kParts]) {
    if (real[e]) {
      S* const saved = side.gates.data ? side.gates.at(place, at.j) + at.unit : nullptr;
      float gates[4];
      if constexpr (CELL == Cell::lstm) {
        float c_now;
#pragma unroll
        for (int g = 0; g < 4; ++g) gates[g] = x[e][g] + sums[g];
        cells::lstm_forward(gates[0], gates[1], gates[2], gates[3], c[e], c_now, h[e]);
        c[e] = c_now;
        if (side.cells.data) narrow(c[e], side.cells.at(place, at.j)[at.unit]);
      } else {
        const float h_before = h[e];
#pragma unroll
        for (int g = 0; g < 4; ++g) gates[g] = x[e][g] + (g == 2 ? 0 : sums[g < 2 ? g : 2]);
        cells::gru_forward(gates[0], gates[1], gates[2], gates[3], h_before, h[e]);
      }
      if (saved) {
#pragma unroll
        for (int g = 0; g < 4; ++g) narrow(gates[g], saved[g * a.Hp]);
      }
      S stored;  // h is what the output says, as everywhere else
      narrow(h[e], stored);
      h[e] = widen(stored);
      side.output.at(place, at.j)[at.unit] = stored;
    } else if (inside[e]) {  // padding
      side.output.at(place, at.j)[at.unit] = S{};
      if (CELL == Cell::lstm && side.cells.data) side.cells.at(place, at.j)[at.unit] = S{};
    }
    if (anew[e]) h[e] = c[e] = 0;
    out[0] = h[e];
  }

  LSTMKERN_DEVICE void end() {
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const Element at = element(e);
      if (!at.real) continue;
      narrow(h[e], side.h_n[at.j * a.H + at.unit]);
      if (CELL == Cell::lstm) narrow(c[e], side.c_n[at.j * a.H + at.unit]);
    }
  }
};

// The host's part: products and biases before the loop.
template <Cell CELL, class S>
class ResidentForwardLayer {
  static constexpr int G = kGates<CELL>;
  const Forward& L;
  const Numbering all;
  float *x_gates[2] = {}, *bias[2] = {};
  Tables tables;

 public:
  ResidentForwardLayer(const Forward& layer, Carver& memory) : L(layer), all(layer), tables(layer, memory) {
    for (int d = 0; d < L.D; ++d) {
      x_gates[d] = memory.take<float>(all.count * G * L.H);
      bias[d] = memory.take<float>(4 * L.H);
    }
  }

  ResidentForward<S> prepare(const Plan& plan, const Call& call) {
    const int64_t H = L.H, N = L.N;
    ResidentForward<S> a = {};
    a.plan = plan;
    a.times = tables.fill(call.stream);
    a.mask = mask_of(L);
    a.H = H;
    a.Hp = padded(H);
    for (int d = 0; d < L.D; ++d) {
      const Weights& w = L.weights[d];
      input_products(L, d, x_gates[d], bias[d], call);
      auto& side = a.side[d];
      side.w_hh = static_cast<const S*>(w.w_hh);
      side.x_gates = all.template rows<const float>(x_gates[d], G * H);
      side.bias = bias[d];
      side.h0 = offset<S>(L.h0, d * N * H);
      side.c0 = offset<S>(L.c0, d * N * H);
      side.h_n = offset<S>(L.h_n, d * N * H);
      side.c_n = offset<S>(L.c_n, d * N * H);
      side.output = rows_of<S>(L.output, d * H);
      side.cells = rows_of<S>(L.cells, d * H);
      side.gates = rows_of<S>(L.gates, d * L.gates_direction);
    }
    return a;
  }

  void finish(const Call&) {}
};

}  // namespace cuda
}  // namespace lstmkern
