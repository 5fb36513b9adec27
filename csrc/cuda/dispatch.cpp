// The table of tiers, and which of them runs a layer. A resident tier becomes the automatic choice for a class of
// shapes only when a result file from real hardware (benchmarks/results) shows that it is faster there. There is none
// yet: unless LSTMKERN_CUDA_TIER is set, the last tier runs everything.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lstmkern {
namespace cuda {
namespace {

const Tier kTiers[] = {
    {"cluster", &cluster_forward, &cluster_backward},
    {"grid", &grid_forward, &grid_backward},
    {"stepwise", &stepwise_forward, &stepwise_backward},
};
constexpr int kCount = 3, kAutomatic = kCount - 1;
std::atomic<long> runs[kCount][2];

int first_tier() {
  const char* requested = std::getenv("LSTMKERN_CUDA_TIER");
  if (!requested || !*requested) return kAutomatic;
  if (const Tier* tier = find_tier(requested)) return static_cast<int>(tier - kTiers);
  std::string names;
  for (const Tier& tier : kTiers) names += std::string(names.empty() ? "" : ", ") + tier.name;
  throw std::runtime_error(std::string("LSTMKERN_CUDA_TIER is \"") + requested + "\", but the tiers are: " + names);
}

template <class L>
Choice choose(const L& layer, int pass) {
  for (int i = first_tier();; ++i) {
    const size_t bytes = kTiers[i].pass(layer).workspace(layer);
    if (bytes == 0 && i + 1 < kCount) continue;
    ++runs[i][pass];
    return {&kTiers[i], bytes};
  }
}

}  // namespace

const Tier* find_tier(const std::string& name) {
  for (const Tier& tier : kTiers)
    if (name == tier.name) return &tier;
  return nullptr;
}

Choice tier_for(const Forward& layer) { return choose(layer, 0); }
Choice tier_for(const Backward& layer) { return choose(layer, 1); }

std::vector<TierRuns> tier_runs() {
  std::vector<TierRuns> all;
  for (int i = 0; i < kCount; ++i) all.push_back({kTiers[i].name, runs[i][0], runs[i][1]});
  return all;
}

}  // namespace cuda
}  // namespace lstmkern
