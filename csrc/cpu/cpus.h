// How many CPUs this process may use.
#pragma once

#include <string>

namespace lstmkern {
namespace cpu {

struct Cpus {
  int mask;          // in the affinity mask
  int found;         // of those, as many as the cgroups' quotas are worth; at least 1
  int threads;       // the most threads for a call: `found`, or what LSTMKERN_NUM_THREADS says
  std::string from;  // what limits them, for people
};

// Cpus of this process if the file system begins at `root` (for tests; otherwise ""), `mask` CPUs are in the
// affinity mask, and `variable` is the value of LSTMKERN_NUM_THREADS or null. Throws std::invalid_argument if that is
// no number from 1 to 65536.
Cpus read_cpus(const std::string& root, int mask, const char* variable);

// The number of CPUs in the affinity mask; on other systems than Linux, of all CPUs.
int cpus_in_affinity_mask();

// Cpus of this process, read at the first call, which throws as read_cpus does.
const Cpus& cpus();

}  // namespace cpu
}  // namespace lstmkern
