// Times the loops of peak.inl, compiled for each instruction set, on a team of threads.
#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "team.h"

namespace lstmkern {
namespace cpu {
namespace {

// A rate to measure. run() returns the work done in `rounds` rounds. Its memory is used by one thread, has at least
// 4096 bytes, is aligned to 64 bytes and holds ones.
struct Rate {
  const char* name;  // null ends a list
  bool (*supported)();
  double (*run)(int64_t rounds, char* memory, int64_t bytes);
};
// The rates of an instruction set.
const Rate* rates(const std::string& capability);

using Clock = std::chrono::steady_clock;

struct Measurement {
  const Rate* rate;
  int64_t bytes;
  double seconds;
  Barrier start;
  std::unique_ptr<double[]> speed;  // of each thread
  int size = 1;
};

void run(void* arg, int rank, int size) {
  Measurement& measured = *static_cast<Measurement*>(arg);
  if (rank == 0) measured.size = size;
  const int64_t bytes = std::max<int64_t>(measured.bytes / size / 4096 * 4096, 4096);
  std::unique_ptr<char[]> memory(new char[bytes + 64]);  // touched by the thread that will read it
  char* aligned = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
  std::fill_n(reinterpret_cast<float*>(aligned), bytes / 4, 1.0f);
  // Enough rounds that the clock is read about every 50 microseconds.
  int64_t rounds = 1;
  auto timed = [&](double& work) {
    const auto begin = Clock::now();
    work = measured.rate->run(rounds, aligned, bytes);
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  for (double work; timed(work) < 50e-6;) rounds *= 2;
  measured.start.wait(size);
  double work = 0, elapsed = 0, part = 0;
  while (elapsed < measured.seconds) {
    elapsed += timed(part);
    work += part;
  }
  measured.speed[rank] = work / elapsed;
}

#if defined(__x86_64__) && defined(__linux__)
bool tiles_granted() {
  const int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

}  // namespace

double peak(const std::string& capability, const std::string& rate, int threads, int64_t bytes, double seconds) {
  threads = std::max(threads, 1);
  for (const Rate* r = rates(capability); r->name; ++r) {
    if (rate != r->name || !r->supported()) continue;
    Measurement measured{r, bytes, seconds, {}, std::unique_ptr<double[]>(new double[threads]()), 1};
    run_team(threads, run, &measured);
    double sum = 0;
    for (int i = 0; i < measured.size; ++i) sum += measured.speed[i];
    return sum;
  }
  return 0;
}

// Last in the file, because no other code may be compiled for these targets.
namespace {
namespace baseline {
#define VECTOR_BYTES 16
#include "peak.inl"
#undef VECTOR_BYTES
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define VECTOR_BYTES 32
#include "peak.inl"
#undef VECTOR_BYTES
#pragma GCC pop_options
}  // namespace avx2

namespace avx512 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#define VECTOR_BYTES 64
#include "peak.inl"
#undef VECTOR_BYTES
#pragma GCC pop_options
}  // namespace avx512
#endif

const Rate* rates(const std::string& capability) {
  static const Rate none{nullptr, nullptr, nullptr};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (capability == "avx512")
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl")
               ? avx512::rates()
               : &none;
  if (capability == "avx2")
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::rates() : &none;
#endif
  return capability == "baseline" ? baseline::rates() : &none;
}

}  // namespace
}  // namespace cpu
}  // namespace lstmkern
