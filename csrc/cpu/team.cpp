// The team on OpenMP, which torch uses too, so that both share one pool of threads.
#include "team.h"

#include <chrono>
#include <climits>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <thread>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "flush.h"

namespace lstmkern {
namespace cpu {

void run_team(int threads, void (*body)(void*, int, int), void* arg) {
  auto run = [=](int rank, int size) {
    const FlushSubnormals flush;
    body(arg, rank, size);
  };
#if defined(_OPENMP)
  if (threads > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
    run(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  run(0, 1);
}

void Barrier::wait_for_others(uint32_t phase) {
  using Clock = std::chrono::steady_clock;
  auto is_open = [&] { return (__atomic_load_n(&phase_, __ATOMIC_ACQUIRE) & ~1u) != phase; };
  const auto until = Clock::now() + std::chrono::microseconds(100);  // a wake-up takes 10 to 100
  do
    for (int i = 0; i < 16; ++i) {
      if (is_open()) return;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
  while (Clock::now() < until);
  while (!is_open()) {
#if defined(__linux__)
    uint32_t expected = phase;
    __atomic_compare_exchange_n(&phase_, &expected, phase | 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    syscall(SYS_futex, &phase_, FUTEX_WAIT_PRIVATE, phase | 1, nullptr, nullptr, 0);
#else
    std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
  }
}

void Barrier::wake() {
#if defined(__linux__)
  syscall(SYS_futex, &phase_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
}

}  // namespace cpu
}  // namespace lstmkern
