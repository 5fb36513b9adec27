// The plans of the resident tiers as numbers (dispatch.h), for tests and benchmarks.
#include <stdexcept>

#include "dispatch.h"
#include "resident.h"

namespace lstmkern {
namespace cuda {
namespace {

// A layer with only what a plan depends on: its sizes, no steps and no memory.
template <class L>
L of_sizes(Cell cell, DType dtype, int64_t N, int64_t H, int D) {
  L layer{};
  layer.cell = cell;
  layer.dtype = dtype;
  layer.N = N;
  layer.I = 1;
  layer.H = layer.P = H;
  layer.D = D;
  layer.input.step = layer.input.lane = 1;
  return layer;
}

template <class L>
bool plan_for(const std::string& name, const L& layer, Plan& p) {
  const Tier* tier = find_tier(name);
  if (tier && tier->pass(layer).plan) return tier->pass(layer).plan(layer, p);
  throw std::invalid_argument("the tiers with a plan are cluster and grid, got \"" + name + '"');
}

}  // namespace

std::vector<PlanValue> plan_values(const std::string& tier, Cell cell, DType dtype, int64_t N, int64_t H, int D,
                                   bool backward) {
  if (N < 1 || H < 1 || (D != 1 && D != 2)) throw std::invalid_argument("N and H must be at least 1 and D 1 or 2");
  Plan p{};
  const bool possible = backward ? plan_for(tier, of_sizes<Backward>(cell, dtype, N, H, D), p)
                                 : plan_for(tier, of_sizes<Forward>(cell, dtype, N, H, D), p);
  if (!possible) return {};
  return {{"blocks", p.blocks},
          {"units", p.units},
          {"groups", p.groups},
          {"slices", p.slices},
          {"sequences", p.sequences},
          {"steps", p.steps},
          {"kept", p.kept},
          {"in_shared", p.in_shared},
          {"bytes", p.bytes},
          {"batches", p.batches},
          {"resident_teams", p.resident_teams}};
}

}  // namespace cuda
}  // namespace lstmkern
