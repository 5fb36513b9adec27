// Recurrent weights that stay on the chip: what the cluster tier (cluster.cu) and the grid tier (grid.cu) share.
//
// One design carries both tiers and both passes. A *team* of blocks holds one copy of the recurrent weights, loaded
// once, and runs the whole time loop for a few sequences (8 * tiles). Per step every block multiplies the team's
// *state* by its slice of the weights, puts its units through the cell, and shares the units' new values:
//   forward   state h,      [H] per sequence;             a unit's rows: W_hh[gate, unit, :], one product per gate
//   backward  state dgates, [gates, H] per sequence;      a unit's row:  W_hh[:, :, unit], one product: dh
// Only the wire differs: remote shared memory and a barrier that counts bytes, or L2 and flags. Teams never wait for
// each other, so more sequences and the second direction are more teams.
//
// Backward gathers the gates' derivatives instead of reducing partial sums of dh over the blocks. The reduction would
// move 4 H bytes per sequence and step and block (fp32), the gathering 2 G H (16 bits): twice as much for an LSTM. But
// it sums in one place and order, makes backward the same loop as forward, and its sums are as exact as the products
// that the weight gradients use.
//
// Within a block, warp = (group of units, slice of the sum). A warp multiplies fragments (fragments.h) of one unit
// group; it keeps its first ones in registers and the rest in shared memory, where a warp reads them without bank
// conflicts. The number of steps of depth in registers is known to the compiler, so the depth is padded with weights
// and a state of zeros: no branch, and loads run ahead. The slices' partial sums meet in shared memory in a fixed
// order; one thread adds them for a (unit, sequence) and keeps its c, h (forward) or what is carried to the step before
// (backward) in registers for the whole sequence.
#pragma once

#include "fragments.h"

namespace lstmkern {
namespace cuda {

constexpr int kResidentThreads = 256;  // at most: 8 warps, so that a thread may have 255 registers
// (unit, sequence) pairs per thread, at most. In fp32, where a pair's values take twice the registers and FMA is what
// bounds a step, a second pair would cost more in weights than it gains in sequences.
template <class S>
constexpr int kElements = sizeof(S) == 2 ? 2 : 1;
constexpr int64_t kMostResidentUnits = 4096;  // no chip holds more; keeps the plan within int
constexpr int64_t kMostRows = 1 << 30;        // keeps steps, sequences and rows within int

// --- how a team's work lies on its blocks ---

struct Plan {
  int blocks;          // of a team
  int units;           // of a block: a multiple of 8, so that 16 bytes of state come from one block
  int groups, slices;  // of a block: its warps
  int sequences;       // of a team
  int row;             // H rounded up to whole tiles: the state is `parts` rows of so many values per sequence
  int width;           // parts * row
  int stride;     // of a sequence's state in shared memory, in values: the depth, padded, and 16 bytes more, against
                  // bank conflicts
  int steps;      // of depth for a warp
  int kept;       // of these, how many have their fragments in registers
  int in_shared;  // and in shared memory
  int state_at, partial_at, bias_at, barriers_at, bytes;  // of shared memory
  int partial_stride;                                     // of a sequence's partial sums, in vectors
  int batches;                                            // teams per direction
  int together;                                           // teams that are resident together

  LSTMKERN_BOTH int warps() const { return groups * slices; }
  LSTMKERN_BOTH int elements() const { return (units * sequences + warps() * 32 - 1) / (warps() * 32); }
};

// Steps of depth in registers come in three sizes, each a kernel of its own. Sums for many sequences need registers
// too.
constexpr int kSizes = 3;
template <class Pass>
constexpr int kept_size(int tiles, int size) {
  return ((tiles < 4 ? Pass::kKept : Pass::kKept * 3 / 4) + (1 << size) - 1) >> size;
}

// A unit's partial sums of all products are stored together: one, or a vector of four.
template <class Pass>
constexpr int kVector = Pass::kProducts == 1 ? 1 : 4;

// What the plan depends on in a pass: kProducts, matrices that a unit has a row in; kParts of the state; kKept, steps
// of depth whose fragments are in registers, at most; kBias, values per unit that its sums start from. `buffers`: of
// the state in shared memory.
template <class Pass>
Plan make_plan(const Layer& layer, int blocks, int tiles, int buffers) {
  using S = typename Pass::Value;
  using T = Tile<S>;
  Plan p = {};
  p.row = static_cast<int>(layer.H + 15) / 16 * 16;
  p.blocks = blocks;
  p.units = ((p.row + blocks - 1) / blocks + 7) / 8 * 8;
  p.groups = (p.units + T::kUnits - 1) / T::kUnits;
  p.slices = kResidentThreads / 32 / p.groups / 2 * 2;  // added in pairs
  p.sequences = 8 * tiles;
  p.width = Pass::kParts * p.row;
  p.batches = static_cast<int>((layer.N + p.sequences - 1) / p.sequences);
  if (p.slices == 0) return p;
  const int steps = (p.width + T::kDepth * p.slices - 1) / (T::kDepth * p.slices);
  int least = 0;
  for (int size = 0; size < kSizes; ++size) {  // more registers are more steps, or fewer in shared memory
    const int kept = kept_size<Pass>(tiles, size), beyond = larger(steps - kept, 0);
    const int cost = kept + beyond * T::kFromShared;
    if (size && least <= cost) continue;
    least = cost;
    p.kept = kept;
    p.in_shared = beyond;
  }
  p.steps = p.kept + p.in_shared;
  p.stride = p.steps * p.slices * T::kDepth + 16 / static_cast<int>(sizeof(S));
  p.state_at = p.in_shared * Pass::kProducts * T::kPieces * p.warps() * 512;
  p.partial_at = p.state_at + buffers * p.sequences * p.stride * static_cast<int>(sizeof(S));
  // Padded so that a warp writes its sums without bank conflicts.
  p.partial_stride = p.groups * T::kUnits + (kVector<Pass> == 1 ? 4 : 1);
  p.bias_at = p.partial_at + p.slices * p.sequences * p.partial_stride * kVector<Pass> * 4;
  p.barriers_at = p.bias_at + p.units * Pass::kBias * 4;
  p.bytes = p.barriers_at + buffers * static_cast<int>(sizeof(MBarrier));
  return p;
}

template <class Pass>
bool possible(const Plan& p, const Chip& chip) {
  return p.slices > 0 && p.elements() <= kElements<typename Pass::Value> &&
         static_cast<size_t>(p.bytes) <= chip.shared_per_block;
}

// f(TILES, KEPT), both std::integral_constant: the kernel of a plan with 1, 2 or 4 tiles, at most MOST.
template <class Pass, int MOST, class F>
auto for_plan(const Plan& p, const F& f) {
  constexpr int two = MOST > 1 ? 2 : 1;
  const auto with = [&](auto tiles) {
    constexpr int a = kept_size<Pass>(tiles, 0), b = kept_size<Pass>(tiles, 1), c = kept_size<Pass>(tiles, 2);
    return p.kept == a   ? f(tiles, std::integral_constant<int, a>{})
           : p.kept == b ? f(tiles, std::integral_constant<int, b>{})
                         : f(tiles, std::integral_constant<int, c>{});
  };
  return p.sequences == 8    ? with(std::integral_constant<int, 1>{})
         : p.sequences == 16 ? with(std::integral_constant<int, two>{})
                             : with(std::integral_constant<int, MOST>{});
}

// The launch of a loop for so many teams.
inline Launch resident_launch(const Plan& plan, int teams) {
  Launch config;
  config.grid.x = static_cast<unsigned>(plan.blocks * teams);
  config.block.x = static_cast<unsigned>(plan.warps() * 32);
  config.shared = static_cast<size_t>(plan.bytes);
  return config;
}

}  // namespace cuda
}  // namespace lstmkern
