// Memory for the kernels and their results, which is cached and reused. New memory is slow: the operating system maps
// and zeroes each page at its first use, which takes a tenth of a large layer's time.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace lstmkern {
namespace cpu {

// Memory for a call's results, aligned to 128 bytes; contents are undefined. A freed block is reused for a
// later result that is not much smaller. Cached plus live blocks stay below 4/3 of the peak of live blocks, and Linux
// can reclaim cached blocks of 4 MiB or more whenever it is short of memory. Of blocks up to 64 KiB, for results or
// workspaces, each thread keeps eight of each size.
void* take_result(size_t bytes);
size_t result_bytes(void* data);  // the size of its block
void give_result(void* data);

// Memory for the buffers of one call of a kernel; contents are undefined. It is cached too, and a later call may reuse
// a larger block of any size.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
};

// Divides a workspace into arrays. It runs twice: with a null base to learn the size, then with the real one.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    const size_t at = used_, bytes = sizeof(T) * static_cast<size_t>(count > 0 ? count : 0);
    used_ += (bytes + 127) / 128 * 128 + 128;
#if defined(__SANITIZE_ADDRESS__)  // the gap between two arrays belongs to neither
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
