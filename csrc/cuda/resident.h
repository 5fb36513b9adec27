// Resident tiers: the recurrent weights stay on the chip. This file has the design and the plan that the cluster tier
// (cluster.cu) and the grid tier (grid.cu) share.
//
// Both tiers and both passes have the same design. A *team* of blocks holds one copy of the recurrent weights, loaded
// once, and runs the whole time loop for a few sequences (8 * tiles). In each step every block multiplies the team's
// *state* by its slice of the weights, runs the cell for its units and sends the new values of its units to the other
// blocks:
//   forward   state h,      [H] per sequence;         a unit has the rows W_hh[gate, unit, :], one product per gate
//   backward  state dgates, [gates, H] per sequence;  a unit has the row W_hh[:, :, unit], one product: dh
// Only the exchange of the state differs: remote shared memory and a barrier that counts bytes (cluster), or L2 and
// flags (grid). Teams never wait for each other, so more sequences, or a second direction, simply need more teams.
//
// Backward sends the gate gradients to all blocks instead of reducing partial sums of dh over the blocks. Per sequence,
// step and block, the reduction would move 4 H bytes (fp32) and this moves 2 G H (16 bits): twice as much for an LSTM.
// But sums are then made in one place and one order, backward has the same loop as forward, and the sums are as exact
// as those of the weight gradients.
//
// Within a block, a warp has a group of units and a slice of the sum. It multiplies fragments (fragments.h) of its
// group. Its first fragments are in registers, the others in shared memory, where a warp reads them without bank
// conflicts. The number of steps of depth in registers is a compile-time constant: the depth is padded with zero
// weights and a zero state, so the loop has no branch and loads can be issued early. The partial sums of the slices are
// added in shared memory in a fixed order. One thread adds them for a (unit, sequence) pair and keeps its c and h
// (forward), or what it passes on to the step before (backward), in registers for the whole sequence.
#pragma once

#include "fragments.h"

namespace lstmkern {
namespace cuda {

constexpr int kResidentThreads = 256;  // the maximum: with 8 warps a thread may have 255 registers
// At most how many (unit, sequence) pairs a thread has. In fp32 a pair's values take twice the registers and FMA
// throughput limits a step: a second pair would cost more in weights than it gains in sequences.
template <class S>
constexpr int kElements = sizeof(S) == 2 ? 2 : 1;
constexpr int64_t kMaxResidentUnits = 4096;  // larger layers fit on no chip; keeps the plan within int
constexpr int64_t kMaxRows = 1 << 30;        // keeps steps, sequences and rows within int

// --- the plan: how a team's work is divided among its blocks ---

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
  int resident_teams;                                     // teams that are resident together

  LSTMKERN_BOTH int warps() const { return groups * slices; }
  LSTMKERN_BOTH int elements() const { return (units * sequences + warps() * 32 - 1) / (warps() * 32); }
};

// A kernel is compiled for three numbers of steps of depth in registers. With many sequences the sums need registers
// too.
constexpr int kSizes = 3;
template <class Pass>
constexpr int kept_size(int tiles, int size) {
  return ((tiles < 4 ? Pass::kKept : Pass::kKept * 3 / 4) + (1 << size) - 1) >> size;
}

// The partial sums of a unit's products are stored together: one value, or a vector of four.
template <class Pass>
constexpr int kVector = Pass::kProducts == 1 ? 1 : 4;

// The plan for a pass with so many blocks per team, tiles of 8 sequences and buffers of the state in shared memory. The
// plan depends on these constants of the pass: kProducts, how many matrices have a row for a unit; kParts of the state;
// kKept, at most how many steps of depth have their fragments in registers; kBias, how many values per unit its sums
// start from.
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
  for (int size = 0; size < kSizes; ++size) {  // a larger size has more steps in all, or fewer in shared memory
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

// Calls f(TILES, KEPT), both std::integral_constant, for the kernel of a plan: with 1, 2 or 4 tiles, at most MAX_TILES.
template <class Pass, int MAX_TILES, class F>
auto for_plan(const Plan& p, const F& f) {
  constexpr int two = MAX_TILES > 1 ? 2 : 1;
  const auto with = [&](auto tiles) {
    constexpr int a = kept_size<Pass>(tiles, 0), b = kept_size<Pass>(tiles, 1), c = kept_size<Pass>(tiles, 2);
    return p.kept == a   ? f(tiles, std::integral_constant<int, a>{})
           : p.kept == b ? f(tiles, std::integral_constant<int, b>{})
                         : f(tiles, std::integral_constant<int, c>{});
  };
  return p.sequences == 8    ? with(std::integral_constant<int, 1>{})
         : p.sequences == 16 ? with(std::integral_constant<int, two>{})
                             : with(std::integral_constant<int, MAX_TILES>{});
}

// The launch of a time loop for `teams` teams.
inline Launch resident_launch(const Plan& plan, int teams) {
  Launch config;
  config.grid.x = static_cast<unsigned>(plan.blocks * teams);
  config.block.x = static_cast<unsigned>(plan.warps() * 32);
  config.shared = static_cast<size_t>(plan.bytes);
  return config;
}

}  // namespace cuda
}  // namespace lstmkern
