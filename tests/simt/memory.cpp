// Guarded buffers: guard zones on both sides and a poison value inside.
#include "machine.h"

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

struct Buffer {
  char* base;
  size_t pieces, bytes, stride;
  std::string name;
};
std::vector<Buffer> buffers;
constexpr size_t kZone = 256;

// The size of a buffer with its zones. A buffer in one piece is on the heap.
size_t all_of(const Buffer& b) { return (b.pieces - 1) * b.stride + b.bytes + 2 * kZone; }

}  // namespace

void* allocate_pieces(size_t pieces, size_t bytes, size_t stride, const char* name) {
  Buffer b{nullptr, pieces, bytes, stride, name};
  if (pieces > 1) {
    if (stride < bytes + 2 * kZone) throw Error("pieces too close for zones between them");
    void* p = mmap(nullptr, all_of(b), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error(std::string("no addresses for the buffer ") + name);
    b.base = static_cast<char*>(p);
  } else {
    b.base = static_cast<char*>(aligned_alloc(256, (all_of(b) + 255) / 256 * 256));
  }
  for (size_t i = 0; i < pieces; ++i) {
    // The zones touch the piece, so that a write of one element too many is seen. Under AddressSanitizer a read is seen
    // too.
    char* const at = b.base + i * stride;
    std::memset(at, kGuardByte, kZone);
    std::memset(at + kZone, kPoison, bytes);
    std::memset(at + kZone + bytes, kGuardByte, kZone);
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(at, kZone);
    ASAN_POISON_MEMORY_REGION(at + kZone + bytes, kZone);
#endif
  }
  buffers.push_back(b);
  return b.base + kZone;
}

void* allocate(size_t bytes, const char* name) { return allocate_pieces(1, bytes, bytes, name); }

void check_guards() {
#if !defined(__SANITIZE_ADDRESS__)
  for (const Buffer& b : buffers)
    for (size_t i = 0; i < b.pieces * kZone; ++i) {
      const char* const zone = b.base + i / kZone * b.stride + i % kZone;
      if (static_cast<unsigned char>(zone[0]) != kGuardByte) throw Error("write before the buffer " + b.name);
      if (static_cast<unsigned char>(zone[kZone + b.bytes]) != kGuardByte)
        throw Error("write past the end of the buffer " + b.name);
    }
#endif
}

void free_all() {
  for (const Buffer& b : buffers) {
#if defined(__SANITIZE_ADDRESS__)
    for (size_t i = 0; i < b.pieces; ++i) ASAN_UNPOISON_MEMORY_REGION(b.base + i * b.stride, b.bytes + 2 * kZone);
#endif
    if (b.pieces > 1)
      munmap(b.base, all_of(b));
    else
      free(b.base);
  }
  buffers.clear();
}

}  // namespace simt
