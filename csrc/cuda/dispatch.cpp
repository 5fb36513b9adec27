// The tiers and the choice among them: a plain table. A resident tier becomes the automatic choice for a class of
// shapes only when a result file of real hardware (benchmarks/results) says that it wins there; none does yet, so
// without LSTMKERN_CUDA_TIER the last tier runs everything.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lstmkern {
namespace cuda {
namespace {

const Tier kTiers[] = {
    {"cluster", cluster::forward_workspace, cluster::forward, cluster::backward_workspace, cluster::backward},
    {"grid", grid::forward_workspace, grid::forward, grid::backward_workspace, grid::backward},
    {"stepwise", stepwise::forward_workspace, stepwise::forward, stepwise::backward_workspace, stepwise::backward},
};
constexpr int kCount = 3, kAutomatic = kCount - 1;
std::atomic<long> runs[kCount][2];

int first_tier() {
  const char* wish = std::getenv("LSTMKERN_CUDA_TIER");
  if (!wish || !*wish) return kAutomatic;
  std::string names;
  for (int i = 0; i < kCount; ++i) {
    if (std::string(wish) == kTiers[i].name) return i;
    names += std::string(i ? ", " : "") + kTiers[i].name;
  }
  throw std::runtime_error(std::string("LSTMKERN_CUDA_TIER is \"") + wish + "\", but the tiers are: " + names);
}

template <class L>
Choice choose(const L& layer, size_t (*Tier::*workspace)(const L&), int pass) {
  for (int i = first_tier();; ++i) {
    const size_t bytes = (kTiers[i].*workspace)(layer);
    if (bytes == 0 && i + 1 < kCount) continue;
    ++runs[i][pass];
    return {&kTiers[i], bytes};
  }
}

}  // namespace

Choice tier_for(const Forward& layer) { return choose(layer, &Tier::forward_workspace, 0); }
Choice tier_for(const Backward& layer) { return choose(layer, &Tier::backward_workspace, 1); }

std::vector<TierRuns> tier_runs() {
  std::vector<TierRuns> all;
  for (int i = 0; i < kCount; ++i) all.push_back({kTiers[i].name, runs[i][0], runs[i][1]});
  return all;
}

}  // namespace cuda
}  // namespace lstmkern
