// The time loop of the resident tiers, packing of the weights, and the functions of a resident tier. Design:
// resident.h.
#pragma once

#include <stdexcept>

#include "resident_pass.h"

namespace lstmkern {
namespace cuda {

LSTMKERN_DEVICE void unpack(unsigned (&to)[4], const Bytes16& from) {
#pragma unroll
  for (int r = 0; r < 4; ++r) to[r] = from.word[r];
}

// --- packing the weights ---

// Stores a direction's weights as fragments in the order in which the loop reads them, [blocks, warps, steps, products,
// pieces, lanes]. Every team reads them from there in whole cache lines.
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
      unsigned fragments[T::kPieces][4];
      T::load(fragments, group * T::kUnits, (slice * p.steps + i) * T::kDepth, [&](int row, int column) {
        return row < p.units ? Pass::weight(a, d, m, rank * p.units + row, column) : typename Pass::Value{};
      });
      Bytes16* const at = to + ((static_cast<int64_t>(warp) * p.steps + i) * Pass::kProducts + m) * T::kPieces * 32;
      for (int piece = 0; piece < T::kPieces; ++piece) {
        const unsigned (&f)[4] = fragments[piece];
        store16(at + piece * 32 + lane_index(), Bytes16{{f[0], f[1], f[2], f[3]}});
      }
    }
}

template <class Pass>
int64_t packed_pieces(const Plan& p) {
  return static_cast<int64_t>(p.blocks) * p.warps() * p.steps * Pass::kProducts * Tile<typename Pass::Value>::kPieces *
         32;
}

// --- the loop ---

// Loads the vector of V values at `from` in shared memory.
template <int V>
LSTMKERN_DEVICE void load_vector(float (&to)[V], const float* from) {
  if constexpr (V == 4) {
    const Bytes16 four = load16(from);
    memcpy(to, &four, 16);
  } else {
    to[0] = from[0];
  }
}
template <int V>
LSTMKERN_DEVICE void store_vector(float* to, const float (&from)[V]) {
  if constexpr (V == 4) {
    Bytes16 four;
    memcpy(&four, from, 16);
    store16(to, four);
  } else {
    to[0] = from[0];
  }
}

// Pass: what a step does with the sums (resident_forward.h, resident_backward.h). Exchange: how the state is sent to
// the other blocks. `shared` is the block's dynamic shared memory, divided as the plan says. KEPT is plan.kept as a
// compile-time constant. `a` is pass.a, passed again: when the plan is read through `pass`, nvcc splits the 16-byte
// stores of the sums (it shows in the SASS).
//
// Other blocks wait for a step's state, so it is published before the step's results are stored. Values from device
// memory are loaded two steps ahead. (In a packed batch, the place of a step is looked up at that time.)
template <int TILES, int KEPT, class Pass, class Exchange>
LSTMKERN_DEVICE void recur(const typename Pass::Arguments& a, unsigned char* shared, Pass& pass, Exchange& exchange) {
  using S = typename Pass::Value;
  using T = Tile<S>;
  constexpr int M = Pass::kProducts, PIECES = T::kPieces, V = kVector<Pass>, CHAINS = kChains<S, M, TILES>;
  const Plan& p = a.plan;
  const int steps = static_cast<int>(a.times.T) + Pass::kExtraSteps;
  const int warp = static_cast<int>(warp_index()), group = warp % p.groups, slice = warp / p.groups;
  const int threads = p.warps() * 32, elements = p.elements();

  // Load the weights, once.
  const Bytes16* const packed = pass.side.packed +
                                (static_cast<int64_t>(pass.role.rank) * p.warps() + warp) * p.steps * M * PIECES * 32 +
                                lane_index();
  unsigned kept[KEPT][M][PIECES][4];
#pragma unroll
  for (int i = 0; i < KEPT; ++i)
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int piece = 0; piece < PIECES; ++piece)
        unpack(kept[i][m][piece], load16(packed + ((i * M + m) * PIECES + piece) * 32));
  unsigned char* const fragments =
      shared + warp * 512 + lane_index() * 16;  // this lane's; those of all warps alternate
  for (int i = 0; i < p.in_shared * M * PIECES; ++i)
    store16(fragments + i * p.warps() * 512, load16(packed + (KEPT * M * PIECES + i) * 32));

  // Clear the state, including its padding, and set the values that the sums start from.
  S* const all = reinterpret_cast<S*>(shared + p.state_at);
  float* const partial = reinterpret_cast<float*>(shared + p.partial_at);
  float* const bias = reinterpret_cast<float*>(shared + p.bias_at);
  const int pieces = (p.partial_at - p.state_at) / 16;
  for (int i = static_cast<int>(thread_rank()); i < pieces; i += threads)
    store16(all + i * kPer16<S>, Bytes16{{0, 0, 0, 0}});
  sync_block();
  pass.begin(all, bias);
  exchange.begin();
  pass.fetch(0);
  pass.advance();
  pass.fetch(1);

  const int column = slice * p.steps * T::kDepth;
  const int slice_stride = p.sequences * p.partial_stride * V;
  float* const sums_of_warp = partial + slice * slice_stride + group * T::kUnits * V;
  for (int step = 0; step < steps; ++step) {
    const S* const state = T::operand(exchange.receive(step), p.stride) + column;
    sync_warp();  // the lanes may have diverged, but mma needs all of them
    float sums[CHAINS][M][TILES][T::kSums] = {};
#pragma unroll
    for (int i = 0; i < KEPT; ++i) T::multiply(sums, kept[i], state + i * T::kDepth, p.stride);
#pragma unroll 1
    for (int i = 0; i < p.in_shared; ++i) {
      unsigned a[M][PIECES][4];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece)
          unpack(a[m][piece], load16(fragments + ((i * M + m) * PIECES + piece) * p.warps() * 512));
      T::multiply(sums, a, state + (KEPT + i) * T::kDepth, p.stride);
    }
    T::template for_each_sum<TILES>([&](int unit, int n, int t, int k) {
      float* const to = sums_of_warp + (n * p.partial_stride + unit) * V;
      float vector[V] = {};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        vector[m] = sums[0][m][t][k];
#pragma unroll
        for (int chain = 1; chain < CHAINS; ++chain) vector[m] += sums[chain][m][t][k];
      }
      store_vector(to, vector);
    });
    sync_block();
    const bool last = step + 1 == steps;
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e) {
      if (e >= elements) break;
      const Element& x = pass.at[e];
      float out[Pass::kParts] = {};
      if (pass.exists(e)) {
        float total[V] = {}, more[V];
        if (Pass::kBias) load_vector(total, bias + x.at(p, pass.role) * V);
        const float* from = partial + (x.n * p.partial_stride + x.at(p, pass.role)) * V;
#pragma unroll 1
        for (int i = 0; i < p.slices; i += 2) {  // slices is even
#pragma unroll
          for (int k = 0; k < 2; ++k, from += slice_stride) {
            load_vector(more, from);
#pragma unroll
            for (int m = 0; m < V; ++m) total[m] += more[m];
          }
        }
        pass.compute(e, total, out);
      }
      if (last) continue;
      const int place = x.n * p.stride + x.unit / kPer16<S> * kPer16<S>;
      Bytes16 pieces[Pass::kParts];  // all before the first is sent, so that no shuffle waits for a store
#pragma unroll
      for (int part = 0; part < Pass::kParts; ++part) pieces[part] = gather16(out[part], S{});
#pragma unroll
      for (int part = 0; part < Pass::kParts; ++part)
        exchange.send(x.is_sent(p, pass.role), step + 1, place + part * p.row, pieces[part]);
    }
    if (!last) exchange.publish(step + 1);
#pragma unroll
    for (int e = 0; e < kElements<S>; ++e)
      if (e < elements && pass.exists(e)) pass.store(e);
    if (last) break;
    pass.advance();
    pass.fetch(step + 2);
  }
  pass.end();
}

// Calls f.template run<CELL, S>() for the layers that the resident tiers support; returns false for others: fp64,
// projections and RNN. (RNN would need no new code, but twice the compile time.)
template <class F>
bool for_resident_kind(const Layer& layer, F&& f) {
  if (layer.weights[0].w_hr || layer.H > kMaxResidentUnits || layer.N > kMaxRows || rows_of_steps(layer) > kMaxRows)
    return false;
  return for_dtype(layer.dtype, [&](auto tag) {
    using S = decltype(tag);
    if constexpr (!std::is_same_v<S, double>) {
      if (layer.cell == Cell::lstm) return f.template run<Cell::lstm, S>();
      if (layer.cell == Cell::gru) return f.template run<Cell::gru, S>();
    }
    return false;
  });
}

// A resident tier for Pass<CELL, S>. Body<Pass>::choose(layer, chip, plan) says whether and how the layer can run,
// Body(layer, plan, memory) allocates its part of the workspace, and loop(arguments, stream) launches the time loop.
template <template <class> class Body, template <Cell, class> class Pass, class L>
struct ResidentTier {
  // The answer of Body::choose(), which queries the device about a dozen kernels. The last answer is kept.
  template <Cell CELL, class S>
  static bool choose(const Layer& layer, Plan& plan) {
    struct Answer {
      Chip chip;
      int64_t N, H;
      int D;
      bool possible;
      Plan plan;
    };
    static thread_local Answer last = {{-1, 0, 0}, 0, 0, 0, false, {}};
    const Chip now = chip();
    if (last.chip.device != now.device || last.N != layer.N || last.H != layer.H || last.D != layer.D) {
      last = {now, layer.N, layer.H, layer.D, false, {}};
      last.possible = Body<Pass<CELL, S>>::choose(layer, now, last.plan);
    }
    plan = last.plan;
    return last.possible;
  }

  struct Measure {
    const L& layer;
    Plan plan = {};
    size_t bytes = 0;
    template <Cell CELL, class S>
    bool run() {
      if (!choose<CELL, S>(layer, plan)) return false;
      Workspace memory(nullptr);
      typename Pass<CELL, S>::Host host(layer, memory);
      Body<Pass<CELL, S>> body(layer, plan, memory);
      memory.allocate<Bytes16>(layer.D * packed_pieces<Pass<CELL, S>>(plan));
      bytes = memory.used();
      return true;
    }
  };

  struct Run {
    const L& layer;
    const Call& call;
    template <Cell CELL, class S>
    bool run() {
      Plan plan;
      if (!choose<CELL, S>(layer, plan)) return false;
      Workspace memory(call.workspace);
      typename Pass<CELL, S>::Host host(layer, memory);
      Body<Pass<CELL, S>> body(layer, plan, memory);
      typename Pass<CELL, S>::Arguments a = host.prepare(plan, call);
      const int64_t pieces = packed_pieces<Pass<CELL, S>>(plan);
      Bytes16* packed = memory.allocate<Bytes16>(layer.D * pieces);
      for (int d = 0; d < layer.D; ++d, packed += pieces) {
        Launch config;
        config.grid = {static_cast<unsigned>((plan.blocks * plan.warps() * 32 + kPackThreads - 1) / kPackThreads),
                       static_cast<unsigned>(plan.steps), 1};
        config.block.x = kPackThreads;
        config.stream = call.stream;
        launch("pack_weights", pack_weights<Pass<CELL, S>>, config, a, d, packed);
        a.side[d].packed = packed;
      }
      body.loop(a, call.stream);
      host.finish(call);
      return true;
    }
  };

  static size_t workspace(const L& layer) {
    Measure measure{layer};
    return for_resident_kind(layer, measure) ? measure.bytes : 0;
  }

  static bool plan(const L& layer, Plan& plan) {
    Measure measure{layer};
    const bool possible = for_resident_kind(layer, measure);
    plan = measure.plan;
    return possible;
  }

  static void run(const L& layer, const Call& call) {
    if (!for_resident_kind(layer, Run{layer, call}))
      throw std::runtime_error("lstmkern: the device cannot hold the layer's recurrent weights");
  }

  static constexpr TierPass<L> functions = {workspace, run, plan};
};

}  // namespace cuda
}  // namespace lstmkern
