// The cluster tier: a team is a cluster of up to 16 blocks, and the state is sent through remote shared memory. Every
// block has two buffers of the state, each with a barrier that counts arriving bytes. A step reads one buffer once it
// is complete, while its results go to the other buffer of every block. A block that sends the next state has received
// this one from every block, so no block still reads what it overwrites. Blocks without units take no part. Design and
// arithmetic: resident.h.
#include "resident_backward.h"
#include "resident_forward.h"
#include "resident_loop.h"

namespace lstmkern {
namespace cuda {
namespace {

#if LSTMKERN_HOPPER
template <class S>
struct ClusterExchange {
  // All lanes that built a 16-byte piece have it. Each lane sends it to some of the blocks.
  static constexpr int kPeers = 16 / kPer16<S>;

  const Plan& p;
  S* const state;
  MBarrier* const barriers;
  const unsigned bytes;  // of the team's state
  const int owners;      // blocks of the team that have units
  Remote peers[kPeers];  // the state in the other blocks

  LSTMKERN_DEVICE ClusterExchange(const Plan& p, unsigned char* shared, int sequences)
      : p(p),
        state(reinterpret_cast<S*>(shared + p.state_at)),
        barriers(reinterpret_cast<MBarrier*>(shared + p.barriers_at)),
        bytes(static_cast<unsigned>(sequences * p.width) * sizeof(S)),
        owners((p.row + p.units - 1) / p.units) {
#pragma unroll
    for (int i = 0; i < kPeers; ++i) peers[i] = remote(state, static_cast<unsigned>(peer(i) < owners ? peer(i) : 0));
  }
  static LSTMKERN_DEVICE int peer(int i) { return static_cast<int>(lane_index()) % kPer16<S> + i * kPer16<S>; }
  static LSTMKERN_DEVICE int buffer(int step) { return step & 1; }

  LSTMKERN_DEVICE void begin() const {
    if (thread_rank() == 0)
      for (int i = 0; i < 2; ++i) {
        mbarrier_init(barriers + i);
        mbarrier_expect(barriers + i, bytes);
      }
    sync_cluster();  // all blocks have started and may be written to
  }
  LSTMKERN_DEVICE const S* receive(int step) const {
    if (step > 0) {
      mbarrier_wait(barriers + buffer(step), static_cast<unsigned>(step - 1) / 2 & 1);
      if (thread_rank() == 0) mbarrier_expect(barriers + buffer(step), bytes);  // for the step after the next
    }
    return state + buffer(step) * p.sequences * p.stride;
  }
  LSTMKERN_DEVICE void send(bool sent, int step, int place, const Bytes16& piece) const {
    const int to = (buffer(step) * p.sequences * p.stride + place) * static_cast<int>(sizeof(S));
    const int barrier = p.barriers_at - p.state_at + buffer(step) * static_cast<int>(sizeof(MBarrier));
#pragma unroll
    for (int i = 0; i < kPeers; ++i) store_async16(sent && peer(i) < owners, peers[i] + to, piece, peers[i] + barrier);
  }
  LSTMKERN_DEVICE void publish(int) const {}  // the arrival of the bytes is the signal
};
#endif

template <class Pass, int TILES, int KEPT>
LSTMKERN_KERNEL(kResidentThreads, 1)
cluster_loop(typename Pass::Arguments a) {
#if LSTMKERN_HOPPER
  LSTMKERN_DYNAMIC_SHARED(unsigned char, shared);
  const int team = static_cast<int>(block_index().x) / a.plan.blocks;
  Pass pass(a, role_of(a.plan, team, static_cast<int>(cluster_rank()), a.times.N));
  const ClusterExchange<typename Pass::Value> exchange(a.plan, shared, pass.role.sequences);
  if (pass.role.rank >= exchange.owners) {  // no other block sends to it or waits for it
    sync_cluster();
    return;
  }
  recur<TILES, KEPT>(a, shared, pass, exchange);
#endif
}

template <class Pass>
class Cluster {
  const Layer& L;
  const Plan plan;

  static constexpr int kMaxTiles = sizeof(typename Pass::Value) == 2 ? 2 : 1;

  static auto kernel(const Plan& plan) {
    return for_plan<Pass, kMaxTiles>(plan, [](auto tiles, auto kept) { return cluster_loop<Pass, tiles, kept>; });
  }

  static Launch launch_config(const Layer& layer, const Plan& plan) {
    Launch l = resident_launch(plan, plan.batches * layer.D);
    l.cluster = static_cast<unsigned>(plan.blocks);
    return l;
  }

 public:
  Cluster(const Layer& layer, const Plan& plan, Workspace&) : L(layer), plan(plan) {}

  // Chooses the plan with the fewest rounds of clusters; among those the largest cluster and the smallest batch.
  static bool choose(const Layer& layer, const Chip& chip, Plan& best) {
    int64_t fewest = 0;
    for (int blocks = 16; blocks > 0; blocks /= 2)
      for (int tiles = 1; tiles <= kMaxTiles; ++tiles) {
        Plan p = make_plan<Pass>(layer, blocks, tiles, 2);
        if (!possible<Pass>(p, chip) || (p.units == 8 && (blocks - 1) * 8 >= p.row))
          continue;  // blocks without units: a smaller cluster does as well
        p.resident_teams = resident_blocks("cluster_loop", kernel(p), launch_config(layer, p)) / blocks;
        if (p.resident_teams == 0) continue;  // the device does not allow this cluster
        const int64_t rounds = (p.batches * layer.D + p.resident_teams - 1) / p.resident_teams;
        if (fewest && fewest <= rounds) continue;
        fewest = rounds;
        best = p;
      }
    return fewest > 0;
  }

  void loop(const typename Pass::Arguments& a, void* stream) const {
    Launch l = launch_config(L, plan);
    l.stream = stream;
    launch("cluster_loop", kernel(plan), l, a);
  }
};

}  // namespace

const TierPass<Forward> cluster_forward = ResidentTier<Cluster, ForwardPass, Forward>::functions;
const TierPass<Backward> cluster_backward = ResidentTier<Cluster, BackwardPass, Backward>::functions;

}  // namespace cuda
}  // namespace lstmkern
