// Which kernels run a layer on CUDA.
#pragma once

#include <string>
#include <vector>

#include "tiers.h"

namespace lstmkern {
namespace cuda {

struct Tier {
  const char* name;
  const TierPass<Forward>* forward;
  const TierPass<Backward>* backward;

  const TierPass<Forward>& pass(const Forward&) const { return *forward; }
  const TierPass<Backward>& pass(const Backward&) const { return *backward; }
};
const Tier* find_tier(const std::string& name);  // null if there is none of that name

// The tier that runs a layer, and the size of its workspace. The environment variable LSTMKERN_CUDA_TIER names the
// first tier to try; a name that is not in the table throws. If a tier cannot run the layer, the next one in the table
// is tried; the last one runs everything.
struct Choice {
  const Tier* tier;
  size_t workspace;
};
Choice tier_for(const Forward& layer);
Choice tier_for(const Backward& layer);

// How often each tier has run a pass in this process. Tests and benchmarks use it to find out which tier ran.
struct TierRuns {
  const char* name;
  long forward, backward;
};
std::vector<TierRuns> tier_runs();

// The plan of the tier "cluster" or "grid" for a layer of these sizes on the current device: the fields of resident.h's
// Plan by name. Empty if the tier cannot run the layer. Throws std::invalid_argument for another tier or for impossible
// sizes.
struct PlanValue {
  const char* name;
  int64_t value;
};
std::vector<PlanValue> plan_values(const std::string& tier, Cell cell, DType dtype, int64_t N, int64_t H, int D,
                                   bool backward);

}  // namespace cuda
}  // namespace lstmkern
