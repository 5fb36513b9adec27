// Teams, on the threads of OpenMP or on our own.
//
// torch uses OpenMP too. Its threads spin for milliseconds after an operator, so a team of other threads would have to
// share their CPUs with them. So a team is a parallel region. It has as many threads as torch's, and those that the
// team does not need return at once: GNU OpenMP ends threads if a region has fewer than the one before, and starts them
// again for torch's next operator.
//
// If torch has more threads than there are CPUs, a region of all of them costs more than a short call (0.1 ms for 16 on
// 2 CPUs), and regions of different sizes in turn cost 1 to 5 ms. But then OpenMP's threads hardly spin, or their
// spinning uses up a quota. So there a team has threads of its own (pool.h).
#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <tuple>
#include <utility>

#include "calls.h"
#include "cpus.h"
#include "flush.h"
#include "pool.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <thread>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace lstmkern {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int64_t> runs[kTeamSizes];
thread_local Clock::duration waited{0};  // of this thread, in barriers

bool forked = false;
#if !defined(_WIN32)
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

#if defined(_OPENMP)
// Runs body in a parallel region of `region` threads, and returns when the caller's part is done and the team's size.
std::pair<Clock::time_point, int> run_region(int region, int threads, void (*body)(void*, int, int), void* arg) {
  Clock::time_point done;
  std::atomic<int> next{1};
  int size = 1;
#pragma omp parallel num_threads(region)
  {
    const int all = omp_get_num_threads(), of_team = std::min(threads, all);
    int rank = omp_get_thread_num();
    if (rank && all > of_team) rank = next.fetch_add(1, std::memory_order_relaxed);  // the first ones to arrive
    if (rank < of_team) body(arg, rank, of_team);
    if (omp_get_thread_num() == 0) {
      done = Clock::now();
      size = of_team;
    }
  }
  return {done, size};
}
#endif

// A body that runs without subnormal numbers on every thread.
struct Flushed {
  void (*body)(void*, int, int);
  void* arg;
  static void run(void* self, int rank, int size) {
    const FlushSubnormals flush;
    static_cast<Flushed*>(self)->body(static_cast<Flushed*>(self)->arg, rank, size);
  }
};

// Whether the team would be inside another one.
bool in_team() {
#if defined(_OPENMP)
  return omp_in_parallel();
#else
  return false;
#endif
}

}  // namespace

void run_team(int threads, void (*given)(void*, int, int), void* given_arg) {
  Flushed flushed{given, given_arg};
  void (*const body)(void*, int, int) = Flushed::run;
  void* const arg = &flushed;
  if (threads < 2 || forked || in_team()) {
    runs[1].fetch_add(1, std::memory_order_relaxed);
    return body(arg, 0, 1);
  }
  const auto begin = Clock::now();
  const auto waited_before = waited;
  Clock::time_point done{};
#if defined(_OPENMP)
  const int region = omp_get_max_threads();
  if (region <= cpus().found)
    std::tie(done, threads) = run_region(std::max(region, threads), threads, body, arg);
  else
#endif
    threads = run_pool(threads, body, arg);
  const auto end = Clock::now();
  const auto lost = waited - waited_before + (done == Clock::time_point{} ? Clock::duration{0} : end - done);
  auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  runs[std::min(threads, kTeamSizes - 1)].fetch_add(1, std::memory_order_relaxed);
  team_ended(threads, seconds(end - begin), seconds(lost));
}

bool is_forked() { return forked; }

int64_t team_runs(int size) { return runs[size].load(std::memory_order_relaxed); }

void Barrier::wait_for_others(uint32_t phase, int size) {
  auto is_open = [&] { return (__atomic_load_n(&phase_, __ATOMIC_ACQUIRE) & ~1u) != phase; };
  auto spin = [&] {
    for (int i = 0; i < 16; ++i) {
      if (is_open()) return true;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
    return false;
  };
  const bool each_runs = size * calls_now() <= cpus().found;
  if (each_runs && (spin() || spin())) return;
  const auto begin = Clock::now();
  if (each_runs)
    while (Clock::now() < begin + std::chrono::microseconds(100))  // a wake-up takes 10 to 100
      if (spin()) break;
  while (!is_open()) {
#if defined(__linux__)
    uint32_t expected = phase;
    __atomic_compare_exchange_n(&phase_, &expected, phase | 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, phase | 1, nullptr, nullptr, 0);
#else
    std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
  }
  waited += Clock::now() - begin;
}

void Barrier::wake() {
#if defined(__linux__)
  syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
}

}  // namespace cpu
}  // namespace lstmkern
