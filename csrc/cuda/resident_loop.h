// The time loop of the resident tiers, the weights' way onto the chip, and a tier's way through a layer. See
// resident.h.
#pragma once

#include <stdexcept>

#include "resident.h"

namespace lstmkern {
namespace cuda {

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

}  // namespace cuda
}  // namespace lstmkern
