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

// A result may use a cached block of up to kReach times its size, so that batches of various lengths reuse the blocks
// of the longest. Shorter results need other blocks. If each group of sizes is kReach times smaller than the one
// before, these take together 1 / (kReach - 1) of the largest.
constexpr size_t kReach = 4;

// Stored before the memory of a block, in a separate pair of cache lines.
struct Header {
  size_t bytes;  // of the block, including this header
  Header* next;  // the next cached block
};
Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader); }

#if defined(__linux__)
size_t whole_pages(size_t bytes) {
  static const size_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}
#endif

// Lets the system reclaim a block's pages when it is short of memory; until then they keep their contents. Only whole
// huge pages (the system would have to split one to reclaim a part of it), except the one with the header.
void make_reclaimable([[maybe_unused]] Header* block) {
#if defined(__linux__) && defined(MADV_FREE)
  char* const begin = reinterpret_cast<char*>(block) + kHugePage;
  if (block->bytes >= 2 * kHugePage) madvise(begin, (block->bytes / kHugePage - 1) * kHugePage, MADV_FREE);
#endif
}

// Blocks of at least kMapped bytes (the threshold of the C library, too) are mapped from the system and unmapped when
// they are released. In the C library's heap they would cause fragmentation and stay resident. Blocks of at least one
// huge page are aligned to one, so that a page fault maps 2 MiB instead of 4 KiB, if the system has huge pages.
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
  // Memory of at least `bytes`. A cached block is used if it has at most `most` bytes. nullptr if there is no memory.
  char* take(size_t bytes, size_t most) {
    std::lock_guard<std::mutex> lock(mutex_);
    Header* block = take_cached(bytes += kHeader, most);
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
    make_reclaimable(block);
    std::lock_guard<std::mutex> lock(mutex_);
    used_ -= block->bytes;
    cached_ += block->bytes;
    block->next = nullptr;
    *end_ = block;
    end_ = &block->next;
    if (kNoCache) shrink_to(0);
  }

  void release_cached() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink_to(0);
  }

  std::mutex& mutex() { return mutex_; }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kNoCache = true;  // AddressSanitizer then checks both ends of every block
#else
  static constexpr bool kNoCache = false;
#endif

  Header* take_cached(size_t bytes, size_t most) {
    Header** best = nullptr;
    for (Header** at = &oldest_; *at; at = &(*at)->next) {
      const size_t size = (*at)->bytes;
      if (size >= bytes && size <= most && (!best || size < (*best)->bytes)) best = at;
    }
    return best ? remove(best) : nullptr;
  }

  // Releases the oldest cached blocks until the rest has at most `bytes`.
  void shrink_to(size_t bytes) {
    while (cached_ > bytes) release(remove(&oldest_));
  }

  Header* remove(Header** at) {
    Header* block = *at;
    *at = block->next;
    if (!*at) end_ = at;
    cached_ -= block->bytes;
    return block;
  }

  std::mutex mutex_;
  Header *oldest_ = nullptr, **end_ = &oldest_;   // list of the cached blocks; the next one's address is stored at end_
  size_t used_ = 0, cached_ = 0, most_used_ = 0;  // bytes of live blocks, of cached blocks, and the peak of used_
};

struct Pools {
  Pool results, workspaces;

  void lock() { std::lock(results.mutex(), workspaces.mutex()); }
  void unlock() {
    results.mutex().unlock();
    workspaces.mutex().unlock();
  }
};

// Never destroyed: threads may still free memory while the process ends.
Pools& pools = *new Pools;

#if defined(__unix__) || defined(__APPLE__)
// fork() waits until no thread is in a pool: otherwise the child would have a pool that is half changed and locked
// forever. Registered at load time, because a fork that has begun does not call handlers registered later.
[[maybe_unused]] const int registered =
    pthread_atfork([] { pools.lock(); }, [] { pools.unlock(); }, [] { pools.unlock(); });
#endif

// Small results and workspaces: each thread keeps the last few blocks that it freed, in a list for each size 64, 128,
// ... bytes. The C library takes five times as long for an aligned block, and a pool locks its mutex.
class SmallBlocks {
 public:
  static constexpr size_t kMost = size_t(64) << 10;  // bytes of the largest

  ~SmallBlocks() {
    for (List& list : lists_)
      while (list.first) release(pop(list));
    ended_ = true;
  }
  static char* take(size_t bytes) {
    const int k = list_of(bytes);
    Header* block = nullptr;
    if (!ended_ && mine_.lists_[k].first)
      block = pop(mine_.lists_[k]);
    else if (!(block = allocate(kHeader + (kLeast << k))))
      throw std::bad_alloc();
    return reinterpret_cast<char*>(block) + kHeader;
  }
  // Whether the block is kept; false for a large one.
  static bool give(Header* block) {
    const size_t bytes = block->bytes - kHeader;
    if (bytes > kMost) return false;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(block, block->bytes);
#endif
    List* const list = ended_ ? nullptr : &mine_.lists_[list_of(bytes)];
    if (!list || list->count == kKept) {
      release(block);
    } else {
      block->next = list->first;
      list->first = block;
      ++list->count;
    }
    return true;
  }

 private:
  static constexpr size_t kLeast = 64;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int kKept = 0;
#else
  static constexpr int kKept = 8;
#endif
  struct List {
    Header* first = nullptr;
    int count = 0;
  };

  static int list_of(size_t bytes) {
    int k = 0;
    while ((kLeast << k) < bytes) ++k;
    return k;
  }
  static Header* pop(List& list) {
    Header* const block = list.first;
    list.first = block->next;
    --list.count;
    return block;
  }

  static thread_local bool ended_;  // a tensor may be freed after the thread's lists have been destroyed
  static thread_local SmallBlocks mine_;
  List lists_[11];
};
thread_local bool SmallBlocks::ended_ = false;
thread_local SmallBlocks SmallBlocks::mine_;

char* take(Pool& pool, size_t bytes, size_t most) {
  if (char* data = pool.take(bytes, most)) return data;
  pools.results.release_cached();
  pools.workspaces.release_cached();
  if (char* data = pool.take(bytes, most)) return data;
  throw std::bad_alloc();
}

}  // namespace

void* take_result(size_t bytes) {
  return bytes > SmallBlocks::kMost ? take(pools.results, bytes, kReach * bytes) : SmallBlocks::take(bytes);
}
size_t result_bytes(void* data) { return header_of(data)->bytes; }
void give_result(void* data) {
  if (!SmallBlocks::give(header_of(data))) pools.results.give(data);
}

Workspace::Workspace(size_t bytes)
    : data_(bytes > SmallBlocks::kMost ? take(pools.workspaces, bytes, std::numeric_limits<size_t>::max())
                                       : SmallBlocks::take(bytes)) {
#if defined(__SANITIZE_ADDRESS__)
  std::memset(data_, 0xff, bytes);  // NaN in every type, so that a sum of unwritten values fails a test
#endif
}

Workspace::~Workspace() {
  if (!SmallBlocks::give(header_of(data_))) pools.workspaces.give(data_);
}

}  // namespace cpu
}  // namespace lstmkern
