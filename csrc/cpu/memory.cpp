#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace lstmkern {
namespace cpu {
namespace {

constexpr size_t kHeader = 128, kMapped = size_t(128) << 10, kHugePage = size_t(2) << 20;

// A result may take a block of up to kReach times its size, so that batches of many lengths soon reuse the blocks of
// the longest. Results that are shorter still need other blocks, each group kReach times smaller than the one before:
// together 1 / (kReach - 1) of the largest.
constexpr size_t kReach = 4;

// Precedes the memory that is handed out, on its own pair of cache lines.
struct Header {
  size_t bytes;  // with it
  Header* next;  // of the cached blocks
};
Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader); }

#if defined(__linux__)
size_t whole_pages(size_t bytes) {
  static const size_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}
#endif

// Lets the system take a block's pages back when it is short of memory; until then they stay as they are. Whole huge
// pages, as parts of one would cost it its size, and not the one with the header.
void offer([[maybe_unused]] Header* block) {
#if defined(__linux__) && defined(MADV_FREE)
  char* const begin = reinterpret_cast<char*>(block) + kHugePage;
  if (block->bytes >= 2 * kHugePage) madvise(begin, (block->bytes / kHugePage - 1) * kHugePage, MADV_FREE);
#endif
}

// Blocks of kMapped bytes and more (the C library's own threshold) are mapped from the system and returned to it:
// in the C library's heap they would leave holes, and stay resident. Those of a huge page and more are aligned to one:
// a page fault of theirs brings 2 MiB instead of 4 KiB, where the system has such pages.
Header* allocate(size_t bytes) {
  if (bytes > std::numeric_limits<size_t>::max() / 2) return nullptr;
  void* data = nullptr;
#if defined(__linux__)
  if (bytes >= kMapped) {
    const size_t size = whole_pages(bytes), align = bytes < kHugePage ? 0 : kHugePage;
    data = mmap(nullptr, size + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    if (align) {
      const size_t before = -reinterpret_cast<uintptr_t>(data) % kHugePage;
      char* const begin = static_cast<char*>(data) + before;
      if (before) munmap(data, before);
      munmap(begin + size, kHugePage - before);
#if defined(MADV_HUGEPAGE)
      madvise(begin, size, MADV_HUGEPAGE);
#endif
      data = begin;
    }
  } else
#endif
      if (posix_memalign(&data, kHeader, bytes) != 0)
    return nullptr;
  Header* block = static_cast<Header*>(data);
  block->bytes = bytes;
  return block;
}

void release(Header* block) {
#if defined(__linux__)
  if (block->bytes >= kMapped)
    munmap(block, whole_pages(block->bytes));
  else
#endif
    std::free(block);
}

class Pool {
 public:
  // At least `bytes`, but no waiting block of more than `most`; nullptr if there is not so much.
  char* take(size_t bytes, size_t most) {
    std::lock_guard<std::mutex> lock(mutex_);
    Header* block = take_waiting(bytes += kHeader, most);
    if (!block) {
      const size_t all = most_used_ + most_used_ / (kReach - 1), now = used_ + bytes;
      shrink_to(now < all ? all - now : 0);
      if (!(block = allocate(bytes))) return nullptr;
    }
    used_ += block->bytes;
    if (used_ > most_used_) most_used_ = used_;
    return reinterpret_cast<char*>(block) + kHeader;
  }

  void give(void* data) {
    Header* block = header_of(data);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(block, block->bytes);
#endif
    offer(block);
    std::lock_guard<std::mutex> lock(mutex_);
    used_ -= block->bytes;
    waits_ += block->bytes;
    block->next = nullptr;
    *end_ = block;
    end_ = &block->next;
    if (kAlone) shrink_to(0);
  }

  void release_waiting() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink_to(0);
  }

  std::mutex& mutex() { return mutex_; }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kAlone = true;  // a separate block for each call, checked at both ends
#else
  static constexpr bool kAlone = false;
#endif

  Header* take_waiting(size_t bytes, size_t most) {
    Header** best = nullptr;
    for (Header** at = &oldest_; *at; at = &(*at)->next) {
      const size_t size = (*at)->bytes;
      if (size >= bytes && size <= most && (!best || size < (*best)->bytes)) best = at;
    }
    return best ? remove(best) : nullptr;
  }

  // Frees those that have waited longest until the rest holds at most so many bytes.
  void shrink_to(size_t bytes) {
    while (waits_ > bytes) release(remove(&oldest_));
  }

  Header* remove(Header** at) {
    Header* block = *at;
    *at = block->next;
    if (!*at) end_ = at;
    waits_ -= block->bytes;
    return block;
  }

  std::mutex mutex_;
  Header *oldest_ = nullptr, **end_ = &oldest_;  // the waiting blocks, and where the next one's address goes
  size_t used_ = 0, waits_ = 0, most_used_ = 0;  // bytes; waits_: of waiting blocks
};

struct Pools {
  Pool results, workspaces;

  void lock() { std::lock(results.mutex(), workspaces.mutex()); }
  void unlock() {
    results.mutex().unlock();
    workspaces.mutex().unlock();
  }
};

// Never destroyed: threads may still free while the process ends.
Pools& pools = *new Pools;

#if defined(__unix__) || defined(__APPLE__)
// Nobody forks while a thread is in a pool: the child would have it half changed, and locked for ever. From the start,
// as a fork that has begun does not hear of it any more.
[[maybe_unused]] const int told = pthread_atfork([] { pools.lock(); }, [] { pools.unlock(); }, [] { pools.unlock(); });
#endif

char* take(Pool& pool, size_t bytes, size_t most) {
  if (char* data = pool.take(bytes, most)) return data;
  pools.results.release_waiting();
  pools.workspaces.release_waiting();
  if (char* data = pool.take(bytes, most)) return data;
  throw std::bad_alloc();
}

}  // namespace

void* take_result(size_t bytes) { return take(pools.results, bytes, kReach * bytes); }
size_t result_bytes(void* data) { return header_of(data)->bytes; }
void give_result(void* data) { pools.results.give(data); }

Workspace::Workspace(size_t bytes) : data_(take(pools.workspaces, bytes, std::numeric_limits<size_t>::max())) {
#if defined(__SANITIZE_ADDRESS__)
  std::memset(data_, 0xff, bytes);  // NaN in every type, so that a sum of unwritten values fails a test
#endif
}

Workspace::~Workspace() { pools.workspaces.give(data_); }

}  // namespace cpu
}  // namespace lstmkern
