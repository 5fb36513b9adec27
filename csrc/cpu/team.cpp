// The team on OpenMP (the one that torch itself uses, so there is one pool of threads).
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

namespace lstmkern {
namespace cpu {

void run_team(int threads, void (*body)(void*, int, int), void* arg) {
#if defined(_OPENMP)
  if (threads > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(threads)
    body(arg, omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  body(arg, 0, 1);
}

void Barrier::await(uint32_t phase) {
  using Clock = std::chrono::steady_clock;
  auto over = [&] { return (__atomic_load_n(&phase_, __ATOMIC_ACQUIRE) & ~1u) != phase; };
  const auto until = Clock::now() + std::chrono::microseconds(100);  // about what waking takes: 10 to 100
  do
    for (int i = 0; i < 16; ++i) {
      if (over()) return;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
  while (Clock::now() < until);
  while (!over()) {
#if defined(__linux__)
    uint32_t awake = phase;
    __atomic_compare_exchange_n(&phase_, &awake, phase | 1, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
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
