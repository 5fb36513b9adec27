// Recurrent weights that stay on the chip: what the cluster tier (cluster.cu) and the grid tier (grid.cu) share.
//
// One design carries both tiers and both passes. A *team* of blocks holds one copy of the recurrent weights, loaded
// once, and runs the whole time loop for a few sequences (8 * tiles). Per step every block multiplies the team's
// *state* by its slice of the weights, puts its units through the cell, and shares the units' new values:
//   forward   state h,      [H] per sequence;             a unit's rows: W_hh[gate, unit, :], one product per gate
//   backward  state dgates, [gates, H] per sequence;      a unit's row:  W_hh[:, :, unit], one product: dh
// Only the wire differs: remote shared memory and the cluster's barrier, or L2 and flags. Teams never wait for each
// other, so more sequences and the second direction are more teams.
//
// Backward gathers the gates' derivatives instead of reducing partial sums of dh over the blocks. The reduction would
// move 4 H bytes per sequence and step and block (fp32), the gathering 2 G H (16 bits): twice as much for an LSTM. But
// it sums in one place and order, makes backward the same loop as forward, and its sums are as exact as the products
// that the weight gradients use.
//
// Within a block, warp = (group of units, slice of the sum). A *fragment* is 16 bytes per lane of one unit group's
// weights; a warp keeps its first ones in registers and the rest in shared memory, where a warp reads them without bank
// conflicts. 16-bit types: mma.m16n8k16 with 16 units of one gate on the M side and 8 sequences on the N side. fp32:
// a lane is a unit, and plain FMA: exact fp32, as torch's recurrent layers are outside of TF32. Three TF32 products
// instead would need every weight split in two (twice the registers and shared memory, of which there is too little
// already) or be split anew at each step, though each is used for 8 sequences only. The slices' partial sums meet in
// shared memory in a fixed order; one thread adds them for a (unit, sequence) and keeps its c, h (forward) or what is
// carried to the step before (backward) in registers for the whole sequence.
#pragma once

#include <stdexcept>

#include "inputs.h"

namespace lstmkern {
namespace cuda {

constexpr int kResidentThreads = 256;         // at most: 8 warps, so that a thread may have 255 registers
constexpr int kElements = 2;                  // (unit, sequence) pairs per thread, at most
constexpr int64_t kMostResidentUnits = 4096;  // no chip holds more; keeps the plan within int

// --- fragments ---

// Fragments of a [units, depth] matrix and their products with the state [sequences, depth]. kSums: sums per lane for
// 8 sequences; kClocks: of a multiprocessor for a fragment and 8 sequences, about.
template <class S>
struct Tile {
  static constexpr int kUnits = 16, kDepth = 16, kSums = 4, kClocks = 2;

  template <class Element>
  static LSTMKERN_DEVICE void load(unsigned (&a)[4], int unit, int k, const Element& element) {
    const int group = static_cast<int>(lane_index()) / 4, member = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int row = unit + group + r % 2 * 8, column = k + member * 2 + r / 2 * 8;
      a[r] = element(row, column).bits | static_cast<unsigned>(element(row, column + 1).bits) << 16;
    }
  }

  template <int M, int TILES>
  static LSTMKERN_DEVICE void multiply(float (&sums)[M][TILES][kSums], const unsigned (&a)[M][4], const S* state,
                                       int stride, int k) {
    const int group = static_cast<int>(lane_index()) / 4, member = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const S* const from = state + (t * 8 + group) * stride + k + member * 2;
      unsigned b[2];
      memcpy(&b[0], from, 4);
      memcpy(&b[1], from + 8, 4);
#pragma unroll
      for (int m = 0; m < M; ++m) mma_16816(sums[m][t], a[m], b, S{});
    }
  }

  // f(unit, sequence, sum) for what this lane has.
  template <int TILES, class F>
  static LSTMKERN_DEVICE void each(const float (&sums)[TILES][kSums], const F& f) {
    const int group = static_cast<int>(lane_index()) / 4, member = static_cast<int>(lane_index()) % 4;
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int i = 0; i < kSums; ++i) f(group + i / 2 * 8, t * 8 + member * 2 + i % 2, sums[t][i]);
  }
};

template <>
struct Tile<float> {
  static constexpr int kUnits = 32, kDepth = 4, kSums = 8, kClocks = 8;

  template <class Element>
  static LSTMKERN_DEVICE void load(unsigned (&a)[4], int unit, int k, const Element& element) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float value = element(unit + static_cast<int>(lane_index()), k + r);
      memcpy(&a[r], &value, 4);
    }
  }

  template <int M, int TILES>
  static LSTMKERN_DEVICE void multiply(float (&sums)[M][TILES][kSums], const unsigned (&a)[M][4], const float* state,
                                       int stride, int k) {
#pragma unroll
    for (int n = 0; n < TILES * 8; ++n) {
      const Bytes16 four = load16(state + n * stride + k);  // the same for all lanes
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float value, weight;
        memcpy(&value, &four.word[r], 4);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          memcpy(&weight, &a[m][r], 4);
          sums[m][n / 8][n % 8] += weight * value;
        }
      }
    }
  }

  template <int TILES, class F>
  static LSTMKERN_DEVICE void each(const float (&sums)[TILES][kSums], const F& f) {
#pragma unroll
    for (int n = 0; n < TILES * 8; ++n) f(static_cast<int>(lane_index()), n, sums[n / 8][n % 8]);
  }
};

// --- how a team's work lies on its blocks ---

struct Plan {
  int blocks;          // of a team
  int units;           // of a block: a multiple of 8, so that 16 bytes of state come from one block
  int groups, slices;  // of a block: its warps
  int sequences;       // of a team
  int row;             // H rounded up to whole tiles: the state is `parts` rows of so many values per sequence
  int depth;           // parts * row
  int stride;          // of a sequence's state in shared memory, in values: 16 bytes more, against bank conflicts
  int steps;           // of depth for a warp
  int in_shared;       // of these, how many have their fragments in shared memory
  int state_at, partial_at, partial_stride, bytes;  // of shared memory
  int batches;                                      // teams per direction
  int together;                                     // teams that are resident together

  LSTMKERN_BOTH int warps() const { return groups * slices; }
  LSTMKERN_BOTH int elements() const { return (units * sequences + warps() * 32 - 1) / (warps() * 32); }
};

// What the plan depends on in a pass: kProducts, matrices that a unit has a row in; kParts of the state; kKept, steps
// of depth whose fragments are in registers. `buffers`: of the state in shared memory.
template <class Pass>
Plan make_plan(const Layer& layer, int blocks, int tiles, int buffers) {
  using S = typename Pass::Value;
  using T = Tile<S>;
  Plan p = {};
  p.row = static_cast<int>(layer.H + 15) / 16 * 16;
  p.blocks = blocks;
  p.units = ((p.row + blocks - 1) / blocks + 7) / 8 * 8;
  p.groups = (p.units + T::kUnits - 1) / T::kUnits;
  p.slices = kResidentThreads / 32 / p.groups;
  p.sequences = 8 * tiles;
  p.depth = Pass::kParts * p.row;
  p.stride = p.depth + 16 / static_cast<int>(sizeof(S));
  p.batches = static_cast<int>((layer.N + p.sequences - 1) / p.sequences);
  if (p.slices == 0) return p;
  p.steps = (p.depth / T::kDepth + p.slices - 1) / p.slices;
  p.in_shared = p.steps > Pass::kKept ? p.steps - Pass::kKept : 0;
  p.state_at = p.in_shared * Pass::kProducts * p.warps() * 512;
  p.partial_at = p.state_at + buffers * p.sequences * p.stride * static_cast<int>(sizeof(S));
  p.partial_stride = p.groups * T::kUnits + 4;
  p.bytes = p.partial_at + p.slices * Pass::kProducts * p.sequences * p.partial_stride * 4;
  return p;
}

inline bool possible(const Plan& p, const Chip& chip) {
  return p.slices > 0 && p.elements() <= kElements && static_cast<size_t>(p.bytes) <= chip.shared_per_block;
}

// --- where a thread's work is ---

// Which team and which of its blocks this is.
struct Seat {
  int d, batch, rank;
};

LSTMKERN_DEVICE Seat seat_of(const Plan& p, int team, int rank) { return {team / p.batches, team % p.batches, rank}; }

// One of a thread's (unit, sequence) pairs.
struct Element {
  int n, unit;      // within the team, within the layer
  int at;           // unit within the block
  int64_t j;        // sequence of the layer
  bool mine, real;  // a pair of this team at all; one that exists in the layer
};

LSTMKERN_DEVICE Element element_of(const Plan& p, const Seat& seat, int e, int64_t N, int64_t H) {
  const int i = e * p.warps() * 32 + static_cast<int>(thread_rank());
  Element x;
  x.n = i / p.units;
  x.at = i % p.units;
  x.unit = seat.rank * p.units + x.at;
  x.j = static_cast<int64_t>(seat.batch) * p.sequences + x.n;
  x.mine = x.n < p.sequences && x.unit < p.row;
  x.real = x.mine && x.j < N && x.unit < H;
  return x;
}

// --- the state's way out of the cell ---

// 16 bytes of neighbouring lanes' values; each of the lanes that gave them has them. For all lanes of a warp.
LSTMKERN_DEVICE Bytes16 together(float value, float) {
  unsigned v;
  memcpy(&v, &value, 4);
  const unsigned lane = lane_index(), w = shuffle_xor(v, 1);
  const unsigned a = lane & 1 ? w : v, b = lane & 1 ? v : w;
  const unsigned c = shuffle_xor(a, 2), d = shuffle_xor(b, 2);
  return lane & 2 ? Bytes16{{c, d, a, b}} : Bytes16{{a, b, c, d}};
}
template <class S>
LSTMKERN_DEVICE Bytes16 together(float value, S narrowed) {
  narrow(value, narrowed);
  const unsigned lane = lane_index(), v = narrowed.bits, w = shuffle_xor(v, 1);
  const unsigned pair = lane & 1 ? w | v << 16 : v | w << 16, next = shuffle_xor(pair, 2);
  const unsigned a = lane & 2 ? next : pair, b = lane & 2 ? pair : next;
  const unsigned c = shuffle_xor(a, 4), d = shuffle_xor(b, 4);
  return lane & 4 ? Bytes16{{c, d, a, b}} : Bytes16{{a, b, c, d}};
}

template <class S>
constexpr int kTogether = 16 / static_cast<int>(sizeof(S));  // lanes, and values

LSTMKERN_DEVICE void words(unsigned (&to)[4], const Bytes16& from) {
#pragma unroll
  for (int r = 0; r < 4; ++r) to[r] = from.word[r];
}

// --- the weights, packed ---

// A direction's weights as fragments in the order in which the loop takes them, [blocks, warps, steps, products,
// lanes]: every team reads them from there in whole lines.
constexpr int kPackThreads = 128;

template <class Pass>
LSTMKERN_KERNEL(kPackThreads)
pack_weights(typename Pass::Arguments a, int d, Bytes16* to) {
  using T = Tile<typename Pass::Value>;
  const Plan& p = a.plan;
  const int warp = static_cast<int>(block_index().x) * (kPackThreads / 32) + static_cast<int>(warp_index());
  if (warp >= p.blocks * p.warps()) return;
  const int rank = warp / p.warps(), group = warp % p.warps() % p.groups, slice = warp % p.warps() / p.groups;
  for (int i = static_cast<int>(block_index().y); i < p.steps; i += static_cast<int>(grid_size().y))
    for (int m = 0; m < Pass::kProducts; ++m) {
      unsigned fragment[4];
      T::load(fragment, group * T::kUnits, (slice + i * p.slices) * T::kDepth, [&](int row, int column) {
        return row < p.units ? Pass::weight(a, d, m, rank * p.units + row, column) : typename Pass::Value{};
      });
      store16(to + ((static_cast<int64_t>(warp) * p.steps + i) * Pass::kProducts + m) * 32 + lane_index(),
              Bytes16{{fragment[0], fragment[1], fragment[2], fragment[3]}});
    }
}

inline int64_t packed_pieces(const Plan& p, int products) {
  return static_cast<int64_t>(p.blocks) * p.warps() * p.steps * products * 32;
}

// --- the loop ---

// Pass: what a step does with the sums (resident_forward.h, resident_backward.h). Wire: how the state travels. `shared`
// is the block's dynamic shared memory, as `plan` divides it.
template <int TILES, class Pass, class Wire>
LSTMKERN_DEVICE void recur(const Plan& p, unsigned char* shared, Pass& pass, Wire& wire, int64_t steps) {
  using S = typename Pass::Value;
  using T = Tile<S>;
  constexpr int M = Pass::kProducts, KEPT = Pass::kKept;
  const int warp = static_cast<int>(warp_index()), group = warp % p.groups, slice = warp / p.groups;
  const auto fragment = [&](int i, int m) {  // the i-th of those in shared memory
    return shared + ((static_cast<size_t>(i) * M + m) * p.warps() + warp) * 512 + lane_index() * 16;
  };
  float* const partial = reinterpret_cast<float*>(shared + p.partial_at);

  // The weights, once.
  const Bytes16* const packed =
      pass.side.packed + (static_cast<int64_t>(pass.seat.rank) * p.warps() + warp) * p.steps * M * 32 + lane_index();
  unsigned kept[KEPT][M][4] = {};
#pragma unroll
  for (int i = 0; i < KEPT; ++i)
    if (i < p.steps)
#pragma unroll
      for (int m = 0; m < M; ++m) words(kept[i][m], load16(packed + (i * M + m) * 32));
  for (int i = 0; i < p.in_shared; ++i)
    for (int m = 0; m < M; ++m) store16(fragment(i, m), load16(packed + ((KEPT + i) * M + m) * 32));

  pass.begin(wire.first());
  wire.begin();
  pass.ahead(0);
  for (int64_t step = 0; step < steps; ++step) {
    const S* const state = wire.receive(step);
    sync_warp();  // for the tile products: what came before may have parted the lanes
    float sums[M][TILES][T::kSums] = {};
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
      const int k = (slice + i * p.slices) * T::kDepth;
      if (k < p.depth) T::multiply(sums, kept[i], state, p.stride, k);
    }
    for (int i = 0; i < p.in_shared; ++i) {
      const int k = (slice + (KEPT + i) * p.slices) * T::kDepth;
      if (k >= p.depth) break;
      unsigned a[M][4];
#pragma unroll
      for (int m = 0; m < M; ++m) words(a[m], load16(fragment(i, m)));
      T::multiply(sums, a, state, p.stride, k);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float* const to =
          partial + static_cast<size_t>(slice * M + m) * p.sequences * p.partial_stride + group * T::kUnits;
      T::each(sums[m], [&](int unit, int n, float sum) { to[n * p.partial_stride + unit] = sum; });
    }
    sync_block();
    const bool last = step + 1 == steps;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (e >= p.elements()) break;
      const Element x = pass.element(e);
      float total[M] = {};
      if (x.real)
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const float* from =
              partial + static_cast<size_t>(m) * p.sequences * p.partial_stride + x.n * p.partial_stride + x.at;
          for (int i = 0; i < p.slices; ++i)
            total[m] += from[static_cast<size_t>(i) * M * p.sequences * p.partial_stride];
        }
      float out[Pass::kParts] = {};
      if (x.real) pass.finish(e, x, total, out);
      if (last) continue;
#pragma unroll
      for (int part = 0; part < Pass::kParts; ++part) {
        const Bytes16 piece = together(out[part], S{});
        if (x.mine) wire.send(step + 1, x.n, part * p.row + x.unit / kTogether<S> * kTogether<S>, piece);
      }
    }
    if (last) break;
    wire.publish(step + 1);
    pass.ahead(step + 1);
    wire.settle();
  }
  pass.end();
}

// f.template run<CELL, S>() for the layers that the resident tiers know; false for others: fp64, projections, and RNN
// (which would fall out of the same templates, for twice the time to compile them).
template <class F>
bool for_resident_kind(const Layer& layer, F&& f) {
  if (layer.weights[0].w_hr || layer.H > kMostResidentUnits) return false;
  auto with = [&](auto tag) {
    using S = decltype(tag);
    if (layer.cell == Cell::lstm) return f.template run<Cell::lstm, S>();
    if (layer.cell == Cell::gru) return f.template run<Cell::gru, S>();
    return false;
  };
  switch (layer.dtype) {
    case DType::f32: return with(float{});
#if LSTMKERN_TYPES > 1
    case DType::bf16: return with(bf16{});
#endif
#if LSTMKERN_TYPES > 2
    case DType::f16: return with(f16{});
#endif
    default: return false;
  }
}

// A tier of resident weights for Pass<CELL, S>: Body<Pass> says choose(layer, chip, plan), whether and how the layer
// can run there; workspace(layer, plan, memory); and loop(arguments, memory, call).
template <template <class> class Body, template <Cell, class> class Pass>
struct ResidentTier {
  // choose(), which asks the device about a dozen kernels, or what it said the last time.
  template <Cell CELL, class S>
  static bool choose(const Layer& layer, Plan& plan) {
    struct Answer {
      Chip chip;
      int64_t N, H;
      int D;
      bool possible;
      Plan plan;
    };
    static thread_local Answer last = {{-1, 0, 0, 0}, 0, 0, 0, false, {}};
    const Chip now = chip();
    if (last.chip.device != now.device || last.N != layer.N || last.H != layer.H || last.D != layer.D) {
      last = {now, layer.N, layer.H, layer.D, false, {}};
      last.possible = now.major >= 9 && Body<Pass<CELL, S>>::choose(layer, now, last.plan);
    }
    plan = last.plan;
    return last.possible;
  }

  template <class L>
  struct Measure {
    const L& layer;
    Plan plan = {};
    size_t bytes = 0;
    template <Cell CELL, class S>
    bool run() {
      if (!choose<CELL, S>(layer, plan)) return false;
      Carver memory(nullptr);
      typename Pass<CELL, S>::Host host(layer, memory);
      Body<Pass<CELL, S>> body(layer, plan, memory);
      memory.take<Bytes16>(layer.D * packed_pieces(plan, Pass<CELL, S>::kProducts));
      bytes = memory.used();
      return true;
    }
  };

  template <class L>
  struct Run {
    const L& layer;
    const Call& call;
    template <Cell CELL, class S>
    bool run() {
      Plan plan;
      if (!choose<CELL, S>(layer, plan)) return false;
      Carver memory(call.workspace);
      typename Pass<CELL, S>::Host host(layer, memory);
      Body<Pass<CELL, S>> body(layer, plan, memory);
      typename Pass<CELL, S>::Arguments a = host.prepare(plan, call);
      const int64_t pieces = packed_pieces(plan, Pass<CELL, S>::kProducts);
      Bytes16* packed = memory.take<Bytes16>(layer.D * pieces);
      for (int d = 0; d < layer.D; ++d, packed += pieces) {
        Launch how;
        how.grid = {static_cast<unsigned>((plan.blocks * plan.warps() * 32 + kPackThreads - 1) / kPackThreads),
                    static_cast<unsigned>(plan.steps), 1};
        how.block.x = kPackThreads;
        how.stream = call.stream;
        launch("pack_weights", pack_weights<Pass<CELL, S>>, how, a, d, packed);
        a.side[d].packed = packed;
      }
      body.loop(a, call.stream);
      host.finish(call);
      return true;
    }
  };

  template <class L>
  static size_t workspace(const L& layer) {
    Measure<L> measure{layer};
    return for_resident_kind(layer, measure) ? measure.bytes : 0;
  }

  template <class L>
  static bool plan(const L& layer, Plan& plan) {
    Measure<L> measure{layer};
    const bool possible = for_resident_kind(layer, measure);
    plan = measure.plan;
    return possible;
  }

  template <class L>
  static void run(const L& layer, const Call& call) {
    if (!for_resident_kind(layer, Run<L>{layer, call}))
      throw std::runtime_error("lstmkern: the device cannot hold the layer's recurrent weights");
  }
};

// How a tier would run a layer; false: it cannot.
namespace cluster {
bool plan(const Forward& layer, Plan& plan);
bool plan(const Backward& layer, Plan& plan);
}  // namespace cluster
namespace grid {
bool plan(const Forward& layer, Plan& plan);
bool plan(const Backward& layer, Plan& plan);
}  // namespace grid

}  // namespace cuda
}  // namespace lstmkern
