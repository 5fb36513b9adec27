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
