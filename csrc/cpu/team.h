// Threads for the kernels: a team that runs one function, and a barrier for it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lstmkern {
namespace cpu {

// Runs body(arg, rank, size) on at most `threads` threads at once and returns when all are done. The size may come
// out smaller (inside another parallel region it is 1), so work is divided by the size that body is told.
void run_team(int threads, void (*body)(void* arg, int rank, int size), void* arg);

// Barrier of a team. A waiting thread spins for some microseconds, enough for a partner that is running, and then
// sleeps until the last one arrives: on a machine with more work than cores the partner may well need this very core,
// and a thread that sleeps keeps its claim to a core, while one that spins or yields uses it up.
//
// Why it is right. Everything hangs on phase_: even, two more at every meeting, and odd once somebody sleeps on it.
// - Nobody leaves early or reads an old phase: it only changes when all `size` threads have arrived, so a thread that
//   has left one meeting finds the phase of the next, and that stays until the thread itself has arrived.
// - What any thread wrote before the meeting is seen by all after it: arriving is a release and, for the last one, an
//   acquire of everybody's arrival (read-modify-writes of waiting_ are one release sequence); its exchange of phase_
//   releases that to all who wait, who acquire it by their load. The reset of waiting_ travels the same way.
// - Nobody oversleeps: the system lets a thread sleep only if phase_ is still odd as that thread saw it, the exchange
//   takes the odd value away in the same stroke as it learns of it, and only then wakes. Who comes between the
//   exchange and the waking is not let to sleep, and who wakes for no reason looks at the phase again.
// - Waking touches nothing but the address, and the barrier is there until its team has ended.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    const uint32_t phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED) & ~1u;
    if (__atomic_add_fetch(&waiting_, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&waiting_, 0, __ATOMIC_RELAXED);
      if (__atomic_exchange_n(&phase_, phase + 2, __ATOMIC_ACQ_REL) & 1) wake();
    } else {
      await(phase);
    }
  }

 private:
  void await(uint32_t phase);
  void wake();
  alignas(64) int waiting_ = 0;
  alignas(64) uint32_t phase_ = 0;
};

// The i-th of n nearly equal parts of [0, total) begins here.
inline int64_t part(int64_t total, int64_t i, int64_t n) { return total * i / n; }

}  // namespace cpu
}  // namespace lstmkern
