// The grid tier: a team has as many blocks as are needed to hold the weights, up to the whole chip, and the state is
// sent through L2. A block writes its units' part of the state to global memory and then adds one to the team's counter
// (release). A block that needs the next state waits until the counter has reached blocks * step (acquire) and copies
// the state to shared memory. There are two buffers of the state. A block that writes step + 1 has seen every block's
// part of `step`, so no block still reads what it overwrites. All blocks of a launch must be resident together: it is a
// cooperative launch of no more teams than fit, and the other teams follow in further launches. Design and arithmetic:
// resident.h.
#include "resident_backward.h"
#include "resident_forward.h"
#include "resident_loop.h"

namespace lstmkern {
namespace cuda {
namespace {

constexpr int kFlagStride = 32;  // each team's counter is in a separate cache line

template <class S>
struct GridState {
  S* state;         // [teams, 2, sequences, stride]
  unsigned* flags;  // [teams, kFlagStride]
  int first;        // the launch's first team
};

template <class S>
struct GridExchange {
  const Plan& p;
  S *const shared, *const global;
  unsigned* const flag;
  const int sequences;

  LSTMKERN_DEVICE S* buffer(int step) const { return global + (step & 1) * p.sequences * p.stride; }
  LSTMKERN_DEVICE void begin() const { sync_block(); }
  LSTMKERN_DEVICE const S* receive(int step) const {
    if (step == 0) return shared;
    if (thread_rank() == 0) wait_flag(flag, static_cast<unsigned>(step) * static_cast<unsigned>(p.blocks));
    sync_block();
    const S* const from = buffer(step);
    const int lane = static_cast<int>(lane_index()) * kPer16<S>;
    for (int n = static_cast<int>(warp_index()); n < sequences; n += p.warps())
      for (int column = lane; column < p.width; column += 32 * kPer16<S>)
        async_copy16(shared + n * p.stride + column, from + n * p.stride + column);
    async_commit();
    async_wait<0>();
    sync_block();
    return shared;
  }
  LSTMKERN_DEVICE void send(bool sent, int step, int place, const Bytes16& piece) const {
    if (sent && lane_index() % kPer16<S> == 0) store_global16(buffer(step) + place, piece);
  }
  LSTMKERN_DEVICE void publish(int) const {
    sync_block();
    if (thread_rank() == 0) add_release(flag, 1);
  }
};

template <class Pass, int TILES, int KEPT>
LSTMKERN_KERNEL(kResidentThreads, 1)
grid_loop(typename Pass::Arguments a, GridState<typename Pass::Value> g) {
#if LSTMKERN_HOPPER
  LSTMKERN_DYNAMIC_SHARED(unsigned char, shared);
  using S = typename Pass::Value;
  const int team = g.first + static_cast<int>(block_index().x) / a.plan.blocks;
  Pass pass(a, role_of(a.plan, team, static_cast<int>(block_index().x) % a.plan.blocks, a.times.N));
  const GridExchange<S> exchange{a.plan, reinterpret_cast<S*>(shared + a.plan.state_at),
                                 g.state + static_cast<int64_t>(team) * 2 * a.plan.sequences * a.plan.stride,
                                 g.flags + team * kFlagStride, pass.role.sequences};
  recur<TILES, KEPT>(a, shared, pass, exchange);
#endif
}

LSTMKERN_KERNEL(kThreads) clear_flags(unsigned* flags, int count) {
  const int i = static_cast<int>(block_index().x * kThreads + thread_rank());
  if (i < count) flags[i] = 0;
}

template <class Pass>
class Grid {
  using S = typename Pass::Value;
  static constexpr int kMaxTiles = sizeof(S) == 2 ? 4 : 1;

  const Plan plan;
  const int teams;
  GridState<S> state = {};

  static auto kernel(const Plan& plan) {
    return for_plan<Pass, kMaxTiles>(plan, [](auto tiles, auto kept) { return grid_loop<Pass, tiles, kept>; });
  }

  static Launch launch_config(const Plan& plan, int teams) {
    Launch l = resident_launch(plan, teams);
    l.cooperative = true;
    return l;
  }

 public:
  Grid(const Layer& layer, const Plan& plan, Workspace& memory) : plan(plan), teams(plan.batches * layer.D) {
    state.state = memory.allocate<S>(static_cast<int64_t>(teams) * 2 * plan.sequences * plan.stride);
    state.flags = memory.allocate<unsigned>(static_cast<int64_t>(teams) * kFlagStride);
  }

  // Chooses the plan with the lowest estimated time for a step of all launches. Costs are in bytes through L2, at the
  // rates of an H100 (docs/benchmarks/gpu.md): waiting for a step counts as 5 MB, a clock as 3 KB.
  static bool choose(const Layer& layer, const Chip& chip, Plan& best) {
    constexpr int64_t kWait = 5000000, kClock = 3000;
    int64_t least = 0;
    for (int units = 16; units <= 64; units += 16)
      for (int tiles = 1; tiles <= kMaxTiles; tiles *= 2) {
        const int blocks = static_cast<int>((layer.H + units - 1) / units);
        Plan p = make_plan<Pass>(layer, blocks, tiles, 1);
        if (!possible<Pass>(p, chip)) continue;
        p.resident_teams = resident_blocks("grid_loop", kernel(p), launch_config(p, 1)) / p.blocks;
        if (p.resident_teams == 0) continue;
        const int64_t teams = static_cast<int64_t>(p.batches) * layer.D;
        const int64_t launches = (teams + p.resident_teams - 1) / p.resident_teams, state = p.sequences * p.width;
        const int64_t multiply = static_cast<int64_t>(p.steps) * Tile<S>::kClocks * tiles,
                      read = p.in_shared * Tile<S>::kPieces * 4;
        const int64_t clocks = (multiply > read ? multiply : read) * Pass::kProducts * p.warps();
        const int64_t cost = launches * (kWait + kClock * clocks) + p.blocks * teams * state * int64_t{sizeof(S)};
        if (least && least <= cost) continue;
        least = cost;
        best = p;
      }
    return least > 0;
  }

  void loop(const typename Pass::Arguments& a, void* stream) const {
    Launch clear;
    clear.grid.x = static_cast<unsigned>((teams * kFlagStride + kThreads - 1) / kThreads);
    clear.block.x = kThreads;
    clear.stream = stream;
    launch("clear_flags", clear_flags, clear, state.flags, teams * kFlagStride);
    GridState<S> g = state;
    for (g.first = 0; g.first < teams; g.first += plan.resident_teams) {
      Launch l = launch_config(plan, teams - g.first < plan.resident_teams ? teams - g.first : plan.resident_teams);
      l.stream = stream;
      launch("grid_loop", kernel(plan), l, a, g);
    }
  }
};

}  // namespace

const TierPass<Forward> grid_forward = ResidentTier<Grid, ForwardPass, Forward>::functions;
const TierPass<Backward> grid_backward = ResidentTier<Grid, BackwardPass, Backward>::functions;

}  // namespace cuda
}  // namespace lstmkern
