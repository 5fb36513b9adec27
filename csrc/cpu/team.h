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

// Gives way to another thread of this core.
void yield_core();

// Meeting point of a team. Waiting spins for some microseconds, enough for a partner that is running, and then gives
// the core away: on a machine with more work than cores the partner may well need this very core.
class Barrier {
 public:
  void wait(int size) {
    if (size == 1) return;
    int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&waiting_, 1, __ATOMIC_ACQ_REL) == size) {
      __atomic_store_n(&waiting_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spin = 0; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; ++spin) {
      if (spin < 1000)
        pause();
      else
        yield_core();
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }
  alignas(64) int waiting_ = 0;
  alignas(64) int phase_ = 0;
};

// The i-th of n nearly equal parts of [0, total) begins here.
inline int64_t part(int64_t total, int64_t i, int64_t n) { return total * i / n; }

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
