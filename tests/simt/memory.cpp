// Guarded buffers: zones on both sides, poison inside.
#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

struct Buffer {
  char* base;
  size_t bytes;
  std::string name;
};
std::vector<Buffer> buffers;
constexpr size_t kZone = 256;

}  // namespace

void* allocate(size_t bytes, const char* name) {
  // Zones right at the end, so that one element too many is seen; under AddressSanitizer also when it is only read.
  char* base = static_cast<char*>(aligned_alloc(256, (bytes + 2 * kZone + 255) / 256 * 256));
  std::memset(base, kPoison, bytes + 2 * kZone);
  std::memset(base, kGuardByte, kZone);
  std::memset(base + kZone + bytes, kGuardByte, kZone);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(base, kZone);
  ASAN_POISON_MEMORY_REGION(base + kZone + bytes, kZone);
#endif
  buffers.push_back({base, bytes, name});
  return base + kZone;
}

void check_guards() {
#if !defined(__SANITIZE_ADDRESS__)
  for (const Buffer& b : buffers)
    for (size_t i = 0; i < kZone; ++i) {
      if (static_cast<unsigned char>(b.base[i]) != kGuardByte) throw Error("write before the buffer " + b.name);
      if (static_cast<unsigned char>(b.base[kZone + b.bytes + i]) != kGuardByte)
        throw Error("write past the end of the buffer " + b.name);
    }
#endif
}

void free_all() {
  for (const Buffer& b : buffers) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(b.base, b.bytes + 2 * kZone);
#endif
    free(b.base);
  }
  buffers.clear();
}

}  // namespace simt
