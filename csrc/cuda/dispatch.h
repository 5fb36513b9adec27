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

// A tier for the layer and the workspace that it takes. LSTMKERN_CUDA_TIER names the tier to begin with; a name that is
// none of ours throws. What it cannot run falls to the next one of the table; the last one runs everything.
struct Choice {
  const Tier* tier;
  size_t workspace;
};
Choice tier_for(const Forward& layer);
Choice tier_for(const Backward& layer);

// How often each tier has run a pass in this process: what a test or a benchmark asks to know whose work it saw.
struct TierRuns {
  const char* name;
  long forward, backward;
};
std::vector<TierRuns> tier_runs();

// How the tier "cluster" or "grid" would run a layer of these sizes on the current device: fields of resident.h's Plan
// by name; empty where it does not take the layer. Another tier or impossible sizes: std::invalid_argument.
struct PlanValue {
  const char* name;
  int64_t value;
};
std::vector<PlanValue> plan_values(const std::string& tier, Cell cell, DType dtype, int64_t N, int64_t H, int D,
                                   bool backward);

}  // namespace cuda
}  // namespace lstmkern
