#include "results.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include "cpu/memory.h"

namespace lstmkern {
namespace {

// torch.profiler sums what allocators report.
void report_to_profiler(void* data, int sign) {
  if (c10::memoryProfilingEnabled())
    c10::reportMemoryUsageToProfiler(data, sign * static_cast<int64_t>(cpu::result_bytes(data)), 0, 0,
                                     c10::Device(c10::kCPU));
}

void give_back(void* data) {
  report_to_profiler(data, -1);
  cpu::give_result(data);
}

class Results final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    try {
      void* data = cpu::take_result(bytes);
      c10::DataPtr result(data, data, give_back, c10::Device(c10::kCPU));
      report_to_profiler(data, 1);
      return result;
    } catch (const std::bad_alloc&) {
      return c10::GetCPUAllocator()->allocate(bytes);  // raises torch's out-of-memory error
    }
  }
  c10::DeleterFnPtr raw_deleter() const override { return give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

// Blocks between these sizes are cached by the C library's allocator, which is faster.
constexpr int64_t kSmall = int64_t(64) << 10, kLarge = int64_t(256) << 10;

}  // namespace

at::Tensor empty_result(at::IntArrayRef sizes, at::ScalarType dtype) {
  static Results& results = *new Results;  // never destroyed: a tensor may be freed after static destructors have run
  int64_t bytes = static_cast<int64_t>(c10::elementSize(dtype));
  for (int64_t n : sizes) bytes *= n;
  return at::detail::empty_generic(sizes, bytes > kSmall && bytes < kLarge ? c10::GetCPUAllocator() : &results,
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

}  // namespace lstmkern
