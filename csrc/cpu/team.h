// Threads for the kernels: a team that runs one function, and a barrier for it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lstmkern {
namespace cpu {

// Runs body(arg, rank, size) on at most `threads` threads at once and returns when all are done. The caller has rank 0.
// `size`, the number of threads that run, may be smaller (1 inside another parallel region and in a forked process), so
// body divides its work by `size`. It asks team_now which threads they are, and tells team_ended how long the caller
// waited (calls.h).
void run_team(int threads, void (*body)(void* arg, int rank, int size), void* arg);

// Whether this process was forked since the kernels were loaded. The other threads of OpenMP and of the pool do not
// exist here, but OpenMP does not know and would wait for them.
bool is_forked();

// How often a team of `size` threads has run in this process; the last size stands for all larger ones.
constexpr int kTeamSizes = 257;
int64_t team_runs(int size);

// Barrier of a team. A waiting thread spins for 100 microseconds, enough if the other threads are running, and then
// sleeps until the last one arrives. If the teams at this time have more threads than there are CPUs, it sleeps at
// once: another thread may need this CPU, and the scheduler favours a thread that has slept over one that has used its
// time slice to spin or yield.
//
// Why it is correct. phase_ is even and grows by two each time the barrier opens. It is odd (phase + 1) while a thread
// sleeps on it.
// - No thread leaves early or reads an old phase. The phase changes only when all `size` threads have arrived. So a
//   thread that has left the barrier reads the new phase, which stays until that thread has arrived again.
// - After the barrier all threads see what any thread wrote before it. Each arrival is a release. The last one also
//   acquires all earlier arrivals, because read-modify-writes of arrived_ form one release sequence. Its exchange of
//   phase_ is a release, and the waiting threads acquire it with their load. They see the reset of arrived_ in the same
//   way.
// - No wake-up is lost. The kernel lets a thread sleep only while phase_ is odd. One atomic exchange reads phase_ and
//   replaces it, and if it was odd, the sleeping threads are woken. A thread that tries to sleep between the exchange
//   and the wake-up finds another value and does not sleep. A thread that wakes without a reason reads the phase again.
// - The wake-up uses only the address of phase_, and the barrier lives until its team has ended.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const uint32_t phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED) & ~1u;
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      if (__atomic_exchange_n(&phase_, phase + 2, __ATOMIC_ACQ_REL) & 1) wake();
    } else {
      wait_for_others(phase, size);
    }
  }

 private:
  void wait_for_others(uint32_t phase, int size);
  void wake();
  alignas(64) int arrived_ = 0;
  alignas(64) uint32_t phase_ = 0;
};

// The i-th of n nearly equal parts of [0, total) begins here. The first part, that of a team's caller, is a largest
// one: the others begin later, and what the caller waits is not what it has less to do.
inline int64_t part(int64_t total, int64_t i, int64_t n) { return (total * i + n - 1) / n; }

}  // namespace cpu
}  // namespace lstmkern
