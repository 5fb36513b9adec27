// Threads and memory for the kernels: a team that runs one function, a barrier for it, and a pool of workspaces.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace lstmkern {
namespace cpu {

// Runs body(arg, rank, size) on at most `threads` threads at once and returns when all are done. The size may come
// out smaller (inside another parallel region it is 1), so work is divided by the size that body is told.
void run_team(int threads, void (*body)(void* arg, int rank, int size), void* arg);

// Meeting point of a team. Who waits spins for some microseconds, enough for a partner that is running, and then sleeps
// until the last one comes: on a machine with more work than cores the partner may well need this very core, and a
// thread that sleeps keeps its claim to a core, while one that spins or yields uses it up.
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

// Asks the system to back this memory, which nobody has touched yet, by huge pages: one fault for 2 MiB instead of
// 512. A wish, and for less than 2 MiB not even that.
void ask_for_huge_pages(void* data, size_t bytes);

// Memory that one call of a kernel works in. Blocks go back to a pool and are used again by later calls, so that the
// pages are there already; large ones lie on huge pages where the system has them. Contents are undefined.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

// Hands out parts of a workspace. First run over a null base to learn the size, then over the real one.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    const size_t at = used_, bytes = sizeof(T) * static_cast<size_t>(count > 0 ? count : 0);
    used_ += (bytes + 127) / 128 * 128 + 128;
#if defined(__SANITIZE_ADDRESS__)  // what lies between two parts is nobody's
    if (base_) __asan_poison_memory_region(base_ + at + bytes, used_ - at - bytes);
#endif
    return reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace cpu
}  // namespace lstmkern
