// Which kernels run a layer on CUDA.
#pragma once

#include "stepwise.h"

namespace lstmkern {
namespace cuda {

struct Tier {
  const char* name;
  size_t (*forward_workspace)(const Forward&);
  void (*forward)(const Forward&, const Call&);
  size_t (*backward_workspace)(const Backward&);
  void (*backward)(const Backward&, const Call&);
};

// The tier for a layer. LSTMKERN_CUDA_TIER names one that is to be used regardless; a name that is none of ours throws.
const Tier& tier_for(const Layer& layer);

}  // namespace cuda
}  // namespace lstmkern
