// Teams, on the threads of OpenMP or on our own.
//
// torch uses OpenMP too. Its threads spin for milliseconds after an operator, so a team of other threads would have to
// share their CPUs with them. So a team is a parallel region. It has as many threads as torch's, and those that the
// team does not need return at once: GNU OpenMP ends threads if a region has fewer than the one before, and starts them
// again for torch's next operator.
//
// If torch has more threads than there are CPUs, a region of all of them costs more than a short call (0.1 ms for 16 on
// 2 CPUs), and regions of different sizes in turn cost 1 to 5 ms. But then OpenMP's threads hardly spin, or their
// spinning uses up a quota. So there a team has threads of its own (pool.h), and also while regions wait for long: on a
// busy machine the spinning takes the time in which the threads could compute (calls.h).
#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>

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
// Runs body in a parallel region of `region` threads and returns the team's size.
int run_region(int region, int threads, void (*body)(void*, int, int), void* arg) {
  std::atomic<int> next{1};
  int size = 1;
#pragma omp parallel num_threads(region)
  {
    const int all = omp_get_num_threads(), of_team = std::min(threads, all);
    int rank = omp_get_thread_num();
    if (rank == 0) size = of_team;
    if (rank && all > of_team) rank = next.fetch_add(1, std::memory_order_relaxed);  // the first ones to arrive
    if (rank < of_team) body(arg, rank, of_team);
  }
  return size;
}
#endif

// Runs a body without subnormal numbers, and measures how long the caller was in it. What it was not, it lost to
// starting and ending the team.
struct Body {
  void (*body)(void*, int, int);
  void* arg;
  Clock::duration inside{0};
  static void run(void* self, int rank, int size) {
    Body& b = *static_cast<Body*>(self);
    const FlushSubnormals flush;
    if (rank || size == 1) return b.body(b.arg, rank, size);
    const auto begin = Clock::now();
    const auto waited_before = waited;
    b.body(b.arg, rank, size);
    b.inside = Clock::now() - begin - (waited - waited_before);
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

void run_team(int threads, void (*body)(void*, int, int), void* arg) {
  Body given{body, arg};
  auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  if (threads < 2 || forked || in_team()) {
    runs[1].fetch_add(1, std::memory_order_relaxed);
    if (!alone_now()) return Body::run(&given, 0, 1);
    const auto begin = Clock::now();
    Body::run(&given, 0, 1);
    return alone_ended(seconds(Clock::now() - begin));
  }
  const auto begin = Clock::now();
  Team team = Team::own;
#if defined(_OPENMP)
  const int region = omp_get_max_threads();
  if (region <= cpus().found) team = team_now();
  if (team == Team::region)
    threads = run_region(std::max(region, threads), threads, Body::run, &given);
  else
#endif
    threads = run_pool(threads, Body::run, &given);
  const auto total = Clock::now() - begin;
  runs[std::min(threads, kTeamSizes - 1)].fetch_add(1, std::memory_order_relaxed);
  if (threads > 1) team_ended(team, threads, seconds(total), seconds(total - given.inside));
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
  const auto begin = Clock::now();
  syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  waited += Clock::now() - begin;  // the thread that wakes may take this one's CPU
#endif
}

}  // namespace cpu
}  // namespace lstmkern
