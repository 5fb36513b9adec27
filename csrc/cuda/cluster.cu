// The cluster tier: a team is a cluster of up to 16 blocks, the state travels through remote shared memory. Two buffers
// of the state in every block: a step reads one while its results fill the other, everywhere, and one cluster barrier
// ends the step. What the next step needs from outside (ahead) is fetched between arriving there and waiting.
// Design and arithmetic: resident.h.
#include "resident_backward.h"
#include "resident_forward.h"
#include "resident_loop.h"

namespace lstmkern {
namespace cuda {
namespace {

#if LSTMKERN_HOPPER
template <class S>
struct ClusterWire {
  const Plan& p;
  S* state;

  LSTMKERN_DEVICE S* buffer(int64_t step) const { return state + static_cast<int>(step & 1) * p.sequences * p.stride; }
  LSTMKERN_DEVICE S* first() const { return buffer(0); }
  LSTMKERN_DEVICE void begin() const { sync_cluster(); }  // everyone is there to be written to
  LSTMKERN_DEVICE const S* receive(int64_t step) const { return buffer(step); }
  // All lanes have the piece; each writes it to some of the blocks.
  LSTMKERN_DEVICE void send(int64_t step, int n, int column, const Bytes16& piece) const {
    S* const to = buffer(step) + n * p.stride + column;
    for (int peer = static_cast<int>(lane_index()) % kTogether<S>; peer < p.blocks; peer += kTogether<S>)
      store16(remote(to, static_cast<unsigned>(peer)), piece);
  }
  LSTMKERN_DEVICE void publish(int64_t) const { cluster_arrive(); }
  LSTMKERN_DEVICE void settle() const { cluster_wait(); }
};
#endif

template <class Pass, int TILES>
LSTMKERN_KERNEL(kResidentThreads)
cluster_loop(typename Pass::Arguments a) {
#if LSTMKERN_HOPPER
  LSTMKERN_DYNAMIC_SHARED(unsigned char, shared);
  using S = typename Pass::Value;
  const int team = static_cast<int>(block_index().x) / a.plan.blocks;
  Pass pass(a, seat_of(a.plan, team, static_cast<int>(cluster_rank())));
  const ClusterWire<S> wire{a.plan, reinterpret_cast<S*>(shared + a.plan.state_at)};
  recur<TILES>(a.plan, shared, pass, wire, a.times.T + Pass::kMoreSteps);
#endif
}

template <class Pass>
class Cluster {
  const Layer& L;
  const Plan plan;

  static constexpr int kMostTiles = sizeof(typename Pass::Value) == 2 ? 2 : 1;

  static auto kernel(int tiles) { return tiles == 1 ? cluster_loop<Pass, 1> : cluster_loop<Pass, kMostTiles>; }

  static Launch how(const Layer& layer, const Plan& plan) {
    Launch l;
    l.grid.x = static_cast<unsigned>(plan.blocks * plan.batches * layer.D);
    l.block.x = static_cast<unsigned>(plan.warps() * 32);
    l.shared = static_cast<size_t>(plan.bytes);
    l.cluster = static_cast<unsigned>(plan.blocks);
    return l;
  }

 public:
  Cluster(const Layer& layer, const Plan& plan, Carver&) : L(layer), plan(plan) {}

  // The plan with the fewest rounds of clusters; among those the largest cluster and the smallest batch.
  static bool choose(const Layer& layer, const Chip& chip, Plan& best) {
    int64_t fewest = 0;
    for (int blocks = 16; blocks > 0; blocks /= 2)
      for (int tiles = 1; tiles <= kMostTiles; ++tiles) {
        Plan p = make_plan<Pass>(layer, blocks, tiles, 2);
        if (!possible(p, chip) || (p.units == 8 && (blocks - 1) * 8 >= p.row)) continue;  // or some would have no units
        p.together = resident_blocks("cluster_loop", kernel(tiles), how(layer, p)) / blocks;
        if (p.together == 0) continue;  // not granted by this device
        const int64_t rounds = (p.batches * layer.D + p.together - 1) / p.together;
        if (fewest && fewest <= rounds) continue;
        fewest = rounds;
        best = p;
      }
    return fewest > 0;
  }

  void loop(const typename Pass::Arguments& a, void* stream) const {
    Launch l = how(L, plan);
    l.stream = stream;
    launch("cluster_loop", kernel(plan.sequences / 8), l, a);
  }
};

using ForwardTier = ResidentTier<Cluster, ForwardPass>;
using BackwardTier = ResidentTier<Cluster, BackwardPass>;

}  // namespace

namespace cluster {

size_t forward_workspace(const Forward& layer) { return ForwardTier::workspace(layer); }
void forward(const Forward& layer, const Call& call) { ForwardTier::run(layer, call); }
size_t backward_workspace(const Backward& layer) { return BackwardTier::workspace(layer); }
void backward(const Backward& layer, const Call& call) { BackwardTier::run(layer, call); }
bool plan(const Forward& layer, Plan& plan) { return ForwardTier::plan(layer, plan); }
bool plan(const Backward& layer, Plan& plan) { return BackwardTier::plan(layer, plan); }

}  // namespace cluster
}  // namespace cuda
}  // namespace lstmkern
