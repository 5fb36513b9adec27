// What both passes of the resident tiers are made of: the arguments of their kernels, which part of the team's work a
// thread does, and what it fetches for a step to come. Design: resident.h.
#pragma once

#include "inputs.h"
#include "resident.h"

namespace lstmkern {
namespace cuda {

// --- the kernels' arguments ---

// Of one direction, in both passes. Saved: S where the pass writes the forward results, const S where it reads them.
// What may be absent is null.
template <class S, class Saved>
struct ResidentSide {
  const S* w_hh;
  const Bytes16* packed;  // see pack_weights
  const S *h0, *c0;       // [N, H]
  Rows<Saved> output, cells, gates;
};

template <class Direction>
struct ResidentArguments {
  using Side = Direction;
  Plan plan;
  Times times;
  Mask mask;
  int64_t H, Hp;
  Side side[2];
};

// The arguments, as far as both passes have them; `packed` follows when the weights are packed.
template <class Arguments, class S, class Saved>
Arguments resident_arguments(const Layer& layer, const Plan& plan, const Times& times) {
  Arguments a = {};
  a.plan = plan;
  a.times = times;
  a.mask = mask_of(layer);
  a.H = layer.H;
  a.Hp = padded(layer.H);
  for (int d = 0; d < layer.D; ++d) {
    ResidentSide<S, Saved>& side = a.side[d];
    side.w_hh = static_cast<const S*>(layer.weights[d].w_hh);
    side.h0 = offset<S>(layer.h0, d * layer.N * layer.H);
    side.c0 = offset<S>(layer.c0, d * layer.N * layer.H);
    side.output = rows_of<Saved>(layer.output, d * layer.H);
    side.cells = rows_of<Saved>(layer.cells, d * layer.H);
    side.gates = rows_of<Saved>(layer.gates, d * layer.gates_direction);
  }
  return a;
}

// --- where a thread's work is ---

// Which team and which of its blocks this is.
struct Seat {
  int d, rank;           // direction, block of the team
  int first, sequences;  // of the layer's; only those that exist: the state of the others is zero and stays where it is
};

LSTMKERN_DEVICE Seat seat_of(const Plan& p, int team, int rank, int64_t N) {
  const int first = team % p.batches * p.sequences, left = static_cast<int>(N) - first;
  return {team / p.batches, rank, first, left < p.sequences ? left : p.sequences};
}

// One of a thread's (unit, sequence) pairs: two numbers are kept, all else is computed from them where it is needed.
struct Element {
  int n, unit;  // within the team, within the layer

  LSTMKERN_DEVICE int sequence(const Seat& seat) const { return seat.first + n; }
  LSTMKERN_DEVICE int at(const Plan& p, const Seat& seat) const { return unit - seat.rank * p.units; }  // in the block
  // Its state is sent; it exists in the layer.
  LSTMKERN_DEVICE bool mine(const Plan& p, const Seat& seat) const { return n < seat.sequences && unit < p.row; }
  LSTMKERN_DEVICE bool real(const Seat& seat, int64_t H) const {
    return n < seat.sequences && unit < static_cast<int>(H);
  }
};

LSTMKERN_DEVICE Element element_of(const Plan& p, const Seat& seat, int e) {
  const int i = e * p.warps() * 32 + static_cast<int>(thread_rank());
  return {i / p.units, seat.rank * p.units + i % p.units};
}

// Steps of a sequence, within what the layer has: the host does not see lengths on the device, so kernels clamp them.
LSTMKERN_DEVICE int steps_of(const Mask& mask, bool exists, int sequence, int64_t T) {
  if (mask.lengths == nullptr || !exists) return static_cast<int>(T);
  const int64_t length = mask.lengths[sequence];
  return static_cast<int>(length < 0 ? 0 : length < T ? length : T);
}

// What a step is to a sequence, as far as that depends on its length alone.
enum Kind : unsigned { kOutside, kPadding, kReal };

LSTMKERN_DEVICE Kind kind_of(bool exists, int sequence, const Moment& m, int length) {
  return !exists || sequence >= static_cast<int>(m.active) ? kOutside
         : static_cast<int>(m.t) < length                  ? kReal
                                                           : kPadding;
}

// That of a thread's pairs, in one register.
struct Kinds {
  unsigned bits = 0;
  LSTMKERN_DEVICE Kind of(int e) const { return static_cast<Kind>(bits >> 2 * e & 3); }
  LSTMKERN_DEVICE void add(int e, Kind kind) { bits |= kind << 2 * e; }
};

// --- what is fetched for a step to come ---

// A value as it is stored (device.h's load_raw).
template <class S>
using Raw = std::conditional_t<sizeof(S) == 2, unsigned, float>;
template <class S>
LSTMKERN_DEVICE float widen_raw(Raw<S> v) {
  if constexpr (sizeof(S) == 2)
    return widen(S{static_cast<uint16_t>(v)});
  else
    return v;
}

// Moves what was fetched a step ago out of the registers into which the next loads go. A plain copy would not do: the
// compiler makes it where the loop begins again, and there it has to wait for loads that were just issued. `zero` is a
// zero that only the host knows to be one.
LSTMKERN_DEVICE unsigned moved(unsigned v, unsigned zero) { return v ^ zero; }
LSTMKERN_DEVICE float moved(float v, unsigned zero) {
  unsigned bits;
  memcpy(&bits, &v, 4);
  bits ^= zero;
  memcpy(&v, &bits, 4);
  return v;
}
LSTMKERN_DEVICE unsigned unknown_zero(const Plan& p) { return static_cast<unsigned>(p.batches) >> 31; }

// What both passes fetch of a step.
template <class S>
struct StepAhead {
  unsigned place = 0;
  Kinds kind;
  unsigned reset[kElements<S>] = {};  // the step begins with zeros

  // For pair e of a thread, once `place` is known. Whether the sequence takes the step.
  LSTMKERN_DEVICE bool fetch(int e, Kind is, const Mask& mask, int sequence) {
    kind.add(e, is);
    if (is == kReal && mask.resets.data) reset[e] = load_raw(mask.resets.at(place, sequence));
    return is == kReal;
  }
  LSTMKERN_DEVICE void take(const StepAhead& next, unsigned zero) {
    place = moved(next.place, zero);
    kind.bits = moved(next.kind.bits, zero);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) reset[e] = moved(next.reset[e], zero);
  }
};

// --- a thread's part of a pass ---

// What a thread knows in both passes. Fetched: what the pass fetches of a step, a StepAhead<S> and more.
template <class S, class Arguments, class Fetched>
struct ResidentPass {
  const Arguments& a;
  const typename Arguments::Side& side;
  const Seat seat;
  Element at[kElements<S>];
  int length[kElements<S>];
  Fetched now, next;

  LSTMKERN_DEVICE ResidentPass(const Arguments& a, const Seat& seat) : a(a), side(a.side[seat.d]), seat(seat) {
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      at[e] = element_of(a.plan, seat, e);
      length[e] = steps_of(a.mask, real(e), sequence(e), a.times.T);
    }
  }

  LSTMKERN_DEVICE int sequence(int e) const { return at[e].sequence(seat); }
  LSTMKERN_DEVICE bool real(int e) const { return at[e].real(seat, a.H); }
  // Of the pair in [N, H], such as h0.
  LSTMKERN_DEVICE int64_t state_index(int e) const { return sequence(e) * a.H + at[e].unit; }

  // Fetches a step: what both passes need, then read(e) for each pair whose sequence takes the step.
  template <class F>
  LSTMKERN_DEVICE void fetch_step(const Moment& m, const F& read) {
    next = {};  // not what it was: that would be one more value to move once the loads are there
    next.place = static_cast<unsigned>(m.place);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e)
      if (next.fetch(e, kind_of(real(e), sequence(e), m, length[e]), a.mask, sequence(e))) read(e);
  }
};

}  // namespace cuda
}  // namespace lstmkern
