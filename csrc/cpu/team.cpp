// The team on OpenMP (the one that torch itself uses, so there is one pool of threads) and the pool of workspaces.
#include "team.h"

#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/mman.h>
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

namespace {

constexpr size_t kHugePage = size_t(2) << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kKept = 0;  // every call a block of its own, watched at both ends
#else
constexpr size_t kKept = size_t(256) << 20;  // bytes that idle blocks may hold in all
#endif

struct Block {
  char* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> idle;
  size_t held = 0;
  void free_at(size_t i) {
    held -= idle[i].bytes;
    std::free(idle[i].data);
    idle.erase(idle.begin() + static_cast<std::ptrdiff_t>(i));
  }
};

Pool& pool() {
  static Pool* p = new Pool;  // never destroyed: threads may still free while the process ends
  return *p;
}

}  // namespace

void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kHugePage) return;
  // Whole pages only: the rest of the first and the last one is somebody else's.
  const uintptr_t page = sysconf(_SC_PAGESIZE), begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

Workspace::Workspace(size_t bytes) {
  // Sizes in steps of an eighth, so that calls of nearly the same size share blocks.
  size_t grain = 4096;
  while (grain * 16 < bytes) grain *= 2;
  bytes_ = (bytes + grain - 1) / grain * grain;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    size_t best = p.idle.size();
    for (size_t i = 0; i < p.idle.size(); ++i)
      if (p.idle[i].bytes >= bytes_ && (best == p.idle.size() || p.idle[i].bytes < p.idle[best].bytes)) best = i;
    if (best < p.idle.size()) {
      data_ = p.idle[best].data;
      bytes_ = p.idle[best].bytes;
      p.held -= bytes_;
      p.idle[best] = p.idle.back();
      p.idle.pop_back();
      return;
    }
    // None is large enough: one of them gives way to the new one, so that calls one after the other share one block.
    if (!p.idle.empty()) p.free_at(0);
  }
  size_t align = bytes_ >= kHugePage ? kHugePage : 4096;
  bytes_ = (bytes_ + align - 1) / align * align;
  void* data = nullptr;
  if (posix_memalign(&data, align, bytes_) != 0) throw std::bad_alloc();
  ask_for_huge_pages(data, bytes_);
  data_ = static_cast<char*>(data);
#if defined(__SANITIZE_ADDRESS__)
  std::memset(data_, 0xff, bytes_);  // NaN in every type: a sum that took in what nobody wrote does not pass a test
#endif
}

Workspace::~Workspace() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  while (p.held + bytes_ > kKept && !p.idle.empty()) p.free_at(0);  // the oldest make room
  if (p.held + bytes_ > kKept) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(data_, bytes_);
#endif
    std::free(data_);
    return;
  }
  p.held += bytes_;
  p.idle.push_back({data_, bytes_});
}

}  // namespace cpu
}  // namespace lstmkern
