// A kernel's launch bound: the most threads that its definition allows in a block. LSTMKERN_KERNEL(threads) makes the
// compiler place that many no-ops before the function's first instruction, where they never run, and record their start
// in a section of its own. The distance from there to the function is the bound.
#include <algorithm>

#include "machine.h"

#if defined(__x86_64__)
constexpr size_t kNoOp = 1;  // bytes
#else
constexpr size_t kNoOp = 4;
#endif

// The linker's names for the section's ends.
extern "C" const char* const __start___patchable_function_entries[] __attribute__((visibility("hidden")));
extern "C" const char* const __stop___patchable_function_entries[] __attribute__((visibility("hidden")));

namespace simt {

unsigned launch_bound(const void* kernel) {
  static const std::vector<const char*> starts = [] {
    std::vector<const char*> all(__start___patchable_function_entries, __stop___patchable_function_entries);
    std::sort(all.begin(), all.end());
    return all;
  }();
  const char* const entry = static_cast<const char*>(kernel);
  const auto after = std::upper_bound(starts.begin(), starts.end(), entry);
  if (after == starts.begin()) return 0;
  // The no-ops belong to another function if there is anything else in between.
  const char* const from = after[-1];
  if (size_t(entry - from) > 1024 * kNoOp) return 0;
  for (const char* p = from; p < entry; ++p)
    if (*p != from[(p - from) % kNoOp]) return 0;
  return unsigned((entry - from) / kNoOp);
}

}  // namespace simt
