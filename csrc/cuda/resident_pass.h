// What forward and backward share in the resident tiers: the kernel arguments, the work of a thread, and the values
// that are prefetched for a step. Design: resident.h.
#pragma once

#include "inputs.h"
#include "resident.h"

namespace lstmkern {
namespace cuda {

// --- the kernels' arguments ---

// The arguments of one direction that both passes have. `Saved` is S if the pass writes the forward results and const S
// if it reads them. Null if absent.
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

// Sets the arguments that both passes have, except `packed`, which is set when the weights are packed.
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

// --- which part of the work a thread has ---

// Which block of which team this is.
struct BlockRole {
  int d, rank;           // direction, block of the team
  int first, sequences;  // of the layer; without those that do not exist, whose state is zero and is not sent
};

LSTMKERN_DEVICE BlockRole role_of(const Plan& p, int team, int rank, int64_t N) {
  const int first = team % p.batches * p.sequences, left = static_cast<int>(N) - first;
  return {team / p.batches, rank, first, left < p.sequences ? left : p.sequences};
}

// One of a thread's (unit, sequence) pairs. Only two numbers are kept; the others are computed where they are needed.
struct Element {
  int n, unit;  // within the team, within the layer

  LSTMKERN_DEVICE int sequence(const BlockRole& role) const { return role.first + n; }
  // The unit's number within the block.
  LSTMKERN_DEVICE int at(const Plan& p, const BlockRole& role) const { return unit - role.rank * p.units; }
  // is_sent: the pair belongs to the team's state. exists: it also belongs to the layer, not to padding.
  LSTMKERN_DEVICE bool is_sent(const Plan& p, const BlockRole& role) const {
    return n < role.sequences && unit < p.row;
  }
  LSTMKERN_DEVICE bool exists(const BlockRole& role, int64_t H) const {
    return n < role.sequences && unit < static_cast<int>(H);
  }
};

LSTMKERN_DEVICE Element element_of(const Plan& p, const BlockRole& role, int e) {
  const int i = e * p.warps() * 32 + static_cast<int>(thread_rank());
  return {i / p.units, role.rank * p.units + i % p.units};
}

// How many steps a sequence has. The host does not see lengths that are on the device, so kernels clamp them to 0..T.
LSTMKERN_DEVICE int steps_of(const Mask& mask, bool exists, int sequence, int64_t T) {
  if (mask.lengths == nullptr || !exists) return static_cast<int>(T);
  const int64_t length = mask.lengths[sequence];
  return static_cast<int>(length < 0 ? 0 : length < T ? length : T);
}

// How a step relates to a sequence, as far as that depends only on the sequence's length.
enum Kind : unsigned { kOutside, kPadding, kReal };

LSTMKERN_DEVICE Kind kind_of(bool exists, int sequence, const Moment& m, int length) {
  return !exists || sequence >= static_cast<int>(m.active) ? kOutside
         : static_cast<int>(m.t) < length                  ? kReal
                                                           : kPadding;
}

// The kinds of a thread's pairs, in one register.
struct Kinds {
  unsigned bits = 0;
  LSTMKERN_DEVICE Kind of(int e) const { return static_cast<Kind>(bits >> 2 * e & 3); }
  LSTMKERN_DEVICE void add(int e, Kind kind) { bits |= kind << 2 * e; }
};

// --- prefetching ---

// The register type of a value as it is in memory (load_raw in device.h).
template <class S>
using Raw = std::conditional_t<sizeof(S) == 2, unsigned, float>;
template <class S>
LSTMKERN_DEVICE float widen_raw(Raw<S> v) {
  if constexpr (sizeof(S) == 2)
    return widen(S{static_cast<uint16_t>(v)});
  else
    return v;
}

// Copies a value that was prefetched a step ago out of the register into which the next load goes. The compiler would
// move a plain copy to the start of the loop, where it has to wait for loads that were just issued. `zero` is a zero
// that the compiler does not know to be zero.
LSTMKERN_DEVICE unsigned opaque_copy(unsigned v, unsigned zero) { return v ^ zero; }
LSTMKERN_DEVICE float opaque_copy(float v, unsigned zero) {
  unsigned bits;
  memcpy(&bits, &v, 4);
  bits ^= zero;
  memcpy(&v, &bits, 4);
  return v;
}
LSTMKERN_DEVICE unsigned opaque_zero(const Plan& p) { return static_cast<unsigned>(p.batches) >> 31; }

// What both passes prefetch of a step.
template <class S>
struct StepAhead {
  unsigned place = 0;
  Kinds kind;
  unsigned reset[kElements<S>] = {};  // the step starts from a zero state

  // Starts the loads for pair e of a thread; `place` must be set. Returns whether the sequence takes the step.
  LSTMKERN_DEVICE bool fetch(int e, Kind is, const Mask& mask, int sequence) {
    kind.add(e, is);
    if (is == kReal && mask.resets.data) reset[e] = load_raw(mask.resets.at(place, sequence));
    return is == kReal;
  }
  LSTMKERN_DEVICE void move_from(const StepAhead& next, unsigned zero) {
    place = opaque_copy(next.place, zero);
    kind.bits = opaque_copy(next.kind.bits, zero);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) reset[e] = opaque_copy(next.reset[e], zero);
  }
};

// --- a thread's part of a pass ---

// What a thread has in both passes. `Fetched` is what the pass prefetches of a step: a StepAhead<S> and more.
template <class S, class Arguments, class Fetched>
struct ResidentPass {
  const Arguments& a;
  const typename Arguments::Side& side;
  const BlockRole role;
  Element at[kElements<S>];
  int length[kElements<S>];
  Fetched now, next;

  LSTMKERN_DEVICE ResidentPass(const Arguments& a, const BlockRole& role) : a(a), side(a.side[role.d]), role(role) {
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      at[e] = element_of(a.plan, role, e);
      length[e] = steps_of(a.mask, exists(e), sequence(e), a.times.T);
    }
  }

  LSTMKERN_DEVICE int sequence(int e) const { return at[e].sequence(role); }
  LSTMKERN_DEVICE bool exists(int e) const { return at[e].exists(role, a.H); }
  // The index of the pair in an array [N, H], such as h0.
  LSTMKERN_DEVICE int64_t state_index(int e) const { return sequence(e) * a.H + at[e].unit; }

  // Prefetches a step: what both passes need, then read(e) for each pair whose sequence takes the step.
  template <class F>
  LSTMKERN_DEVICE void fetch_step(const Moment& m, const F& read) {
    next = {};  // reset it: an old value would have to be copied after the loads
    next.place = static_cast<unsigned>(m.place);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e)
      if (next.fetch(e, kind_of(exists(e), sequence(e), m, length[e]), a.mask, sequence(e))) read(e);
  }
};

}  // namespace cuda
}  // namespace lstmkern
