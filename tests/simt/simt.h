// The names of device.h with a meaning on a CPU. Every CUDA thread is a fiber. A seeded scheduler (scheduler.cpp) runs
// the fibers of a launch one at a time in random order, so only barriers, flags and collectives order them.
//
// These faults become an exception that names the kernel, the source line and the threads: a barrier or collective that
// a thread never reaches; a flag that is never set; threads of a block at different barriers; launches that hardware
// refuses; misaligned 16-byte accesses; writes past a shared array or a guarded buffer. Shared memory starts with NaN
// in every word.
//
// Launches with more threads per block than the kernel's launch bound are refused too; bounds.cpp finds out the bound.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>

#define LSTMKERN_HOPPER 1
// sizeof, because GCC 12 crashes if a template argument is named there. static, because otherwise the bounds of kernels
// that several files define could not be left out.
#define LSTMKERN_KERNEL(threads, ...) \
  [[gnu::patchable_function_entry(sizeof(char[threads]), sizeof(char[threads]))]] static void
#define LSTMKERN_DEVICE inline
#define LSTMKERN_BOTH inline
#define LSTMKERN_SHARED(type, name, count) \
  type* const name = static_cast<type*>(simt::shared_array(sizeof(type) * (count), __FILE__, __LINE__))
#define LSTMKERN_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(simt::dynamic_shared())

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

struct Place {
  const char* file;
  int line;
};
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct ThreadInfo {
  Index thread, block, block_size, grid_size;
  unsigned rank;  // within the block
  unsigned cluster_rank, cluster_size;
};

struct LaunchInfo {
  const char* name;
  unsigned bound;  // most threads in a block, from the kernel's definition; 0: not a kernel
  Index grid, block;
  size_t shared;
  unsigned cluster;
  bool cooperative;
};

// The simulated machine. Its limits are those of an H100; tests make it smaller.
struct Device {
  int number = 0;  // devices with different properties have different numbers
  unsigned multiprocessors = 132;
  unsigned threads_per_multiprocessor = 2048, blocks_per_multiprocessor = 32;
  unsigned registers_per_multiprocessor = 65536, registers_per_thread = 256;  // the most; a kernel's number is not known here
  size_t shared_per_multiprocessor = 228 * 1024, shared_per_block = 227 * 1024, shared_reserved = 1024;
  unsigned largest_cluster = 16;
  int code_version = 90;  // of the loaded kernels, see launch.h
};
Device& device();

void seed(uint64_t value);
uint64_t launches();  // so far

// Memory with guard zones on both sides and poison inside. check_guards() throws if a zone was written to.
void* allocate(size_t bytes, const char* name);
// The same for pieces that begin `stride` bytes apart. The gaps between them use addresses but no memory.
void* allocate_pieces(size_t pieces, size_t bytes, size_t stride, const char* name);
void free_all();
void check_guards();

unsigned launch_bound(const void* kernel);

// Blocks that can be resident together; throws where the launch is refused.
size_t resident_blocks(const LaunchInfo& info);
void run(const LaunchInfo& info, const std::function<void()>& thread);

// Called from a kernel.
const ThreadInfo& self();
void yield();  // other threads may run
void* shared_array(size_t bytes, const char* file, int line);
void* dynamic_shared();
void sync_block(Place place);
void cluster_arrive(Place place);
void cluster_wait(Place place);
void mbarrier_init(void* barrier, Place place);
void mbarrier_expect(void* barrier, unsigned bytes, Place place);
void mbarrier_wait(const void* barrier, unsigned parity, Place place);
void store_async16(void* to, const void* value, void* barrier, unsigned rank, Place place);
void wait_flag(const unsigned* flag, unsigned value, Place place);
void polled(Place place);  // a flag was read; if no other thread makes progress, a deadlock is reported
void async_copy16(void* shared, const void* global);
void async_commit();
void async_wait(int newest);
// Every lane of the warp passes `bytes` bytes (at most 64) and receives those of all 32 lanes, 64 bytes apart.
void exchange(const void* value, size_t bytes, void* all, const char* what, Place place);
// The same, but each lane receives `result_bytes` of its own row of what combine() makes of the 32 values. combine()
// runs once.
typedef void (*Combine)(const char (&given)[32][64], char (&results)[32][64]);
void collective(const void* value, size_t bytes, void* result, size_t result_bytes, Combine combine, const char* what,
                Place place);
void fail(const std::string& message);

}  // namespace simt

namespace lstmkern {
namespace cuda {

typedef void* Stream;
using Index = simt::Index;

inline Index thread_index() { return simt::self().thread; }
inline Index block_index() { return simt::self().block; }
inline Index block_size() { return simt::self().block_size; }
inline Index grid_size() { return simt::self().grid_size; }
inline unsigned thread_rank() { return simt::self().rank; }
inline unsigned lane_index() { return simt::self().rank % 32; }
inline unsigned warp_index() { return simt::self().rank / 32; }

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(bf16 v) {
  uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float widen(f16 v) {
  const uint32_t exponent = (v.bits >> 10) & 31, fraction = v.bits & 1023;
  float f = exponent == 31 ? (fraction ? NAN : INFINITY)
            : exponent     ? std::ldexp(float(1024 + fraction), int(exponent) - 25)
                           : std::ldexp(float(fraction), -24);
  return v.bits & 0x8000 ? -f : f;
}
inline void narrow(float v, float& to) { to = v; }
inline void narrow(double v, double& to) { to = v; }
inline void narrow(float v, bf16& to) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  to.bits = v == v ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fff;
}
inline void narrow(float v, f16& to) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const float a = std::fabs(v);
  if (!(a == a)) {
    to.bits = 0x7fff;
  } else if (a >= 65520.0f) {
    to.bits = sign | 0x7c00;
  } else if (a < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    to.bits = sign | uint16_t(std::nearbyint(a * 0x1p24f));
  } else {
    int e;
    const float fraction = std::frexp(a, &e);  // in [0.5, 1)
    to.bits = sign | uint16_t(((e + 14) << 10) + int(std::nearbyint(fraction * 2048)) - 1024);
  }
}

template <class S>
unsigned narrow_two(float low, float high, S) {
  S both[2];
  narrow(low, both[0]);
  narrow(high, both[1]);
  return both[0].bits | unsigned(both[1].bits) << 16;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline float tanh(float x) { return std::tanh(x); }
inline double tanh(double x) { return std::tanh(x); }

struct alignas(16) Bytes16 {
  unsigned word[4];
};
inline void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16) simt::fail("misaligned 16-byte access");
}
inline Bytes16 load16(const void* p) {
  check_aligned(p);
  Bytes16 v;
  std::memcpy(&v, p, 16);
  return v;
}
inline void store16(void* p, const Bytes16& v) {
  check_aligned(p);
  std::memcpy(p, &v, 16);
}

inline float load_raw(const float* p) { return *p; }
template <class S>
unsigned load_raw(const S* p) {
  static_assert(sizeof(S) <= 2, "bf16, f16, bool");
  unsigned v = 0;
  std::memcpy(&v, p, sizeof(S));
  return v;
}
inline void store_global16(void* p, const Bytes16& v) { store16(p, v); }

inline void async_copy16(void* shared, const void* global) {
  check_aligned(shared);
  check_aligned(global);
  simt::async_copy16(shared, global);
}
inline void async_commit() { simt::async_commit(); }
template <int N>
void async_wait() {
  simt::async_wait(N);
}

inline void sync_block(SIMT_HERE) { simt::sync_block({file, line}); }

constexpr unsigned kFullWarp = 0xffffffffu;
inline void sync_warp(SIMT_HERE) {
  char all[32][64], none = 0;
  simt::exchange(&none, 1, all, "sync_warp", {file, line});
}
// The value of lane `from`, or the lane's own value if there is no such lane.
template <class T>
T shuffled(T v, unsigned from, const char* what, simt::Place place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "shuffles move 4 or 8 bytes");
  char all[32][64];
  simt::exchange(&v, sizeof(T), all, what, place);
  if (from < 32) std::memcpy(&v, all[from], sizeof(T));
  return v;
}
template <class T>
T shuffle(T v, unsigned from, SIMT_HERE) {
  return shuffled(v, from % 32, "shuffle", {file, line});
}
template <class T>
T shuffle_down(T v, unsigned by, SIMT_HERE) {
  return shuffled(v, lane_index() + by, "shuffle_down", {file, line});
}
template <class T>
T shuffle_up(T v, unsigned by, SIMT_HERE) {
  return shuffled(v, lane_index() >= by ? lane_index() - by : 32, "shuffle_up", {file, line});
}
template <class T>
T shuffle_xor(T v, unsigned mask, SIMT_HERE) {
  return shuffled(v, lane_index() ^ mask, "shuffle_xor", {file, line});
}
inline unsigned ballot(bool predicate, SIMT_HERE) {
  char all[32][64], value = predicate;
  simt::exchange(&value, 1, all, "ballot", {file, line});
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned(all[i][0] != 0) << i;
  return bits;
}

// ldmatrix.x4: lane 8 m + i gives row i of matrix m. Register m of a lane receives 4 bytes of row lane / 4, at column
// lane % 4.
inline void load_rows(const char (&given)[32][64], char (&results)[32][64]) {
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m) std::memcpy(results[lane] + 4 * m, given[m * 8 + lane / 4] + lane % 4 * 4, 4);
}
inline void load_matrices(unsigned (&r)[4], const void* row, SIMT_HERE) {
  const Bytes16 value = load16(row);
  simt::collective(&value, 16, r, sizeof r, load_rows, "load_matrices", {file, line});
}

// The fragments of mma.m16n8k16 in the PTX manual, element by element. groupID = lane >> 2, threadID_in_group = lane %
// 4.
// A: row = groupID for i = 0 1 4 5 and groupID + 8 for i = 2 3 6 7, col = threadID * 2 + (i & 1), + 8 for i >= 4;
// B: row = threadID * 2 + (i & 1), + 8 for i >= 2, col = groupID;
// C, D: row = groupID for i < 2 and groupID + 8 otherwise, col = threadID * 2 + (i & 1).
template <class S>
struct MmaOperands {
  unsigned a[4], b[2];
  float d[4];
  static void multiply(const char (&given)[32][64], char (&results)[32][64]) {
    float A[16][16], B[16][8];
    MmaOperands all[32];
    for (unsigned lane = 0; lane < 32; ++lane) {
      std::memcpy(static_cast<void*>(&all[lane]), given[lane], sizeof(MmaOperands));
      S a_values[8], b_values[4];
      std::memcpy(a_values, all[lane].a, 16);
      std::memcpy(b_values, all[lane].b, 8);
      const unsigned group = lane >> 2, member = lane % 4;
      for (unsigned i = 0; i < 8; ++i)
        A[group + (i == 2 || i == 3 || i >= 6 ? 8 : 0)][member * 2 + (i & 1) + (i >= 4 ? 8 : 0)] = widen(a_values[i]);
      for (unsigned i = 0; i < 4; ++i) B[member * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = widen(b_values[i]);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
        for (int k = 0; k < 16; ++k) all[lane].d[i] += A[row][k] * B[k][column];
      }
      std::memcpy(results[lane], all[lane].d, 16);
    }
  }
};
template <class S>
void mma_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], S, SIMT_HERE) {
  MmaOperands<S> operands;
  std::memcpy(operands.a, a, sizeof operands.a);
  std::memcpy(operands.b, b, sizeof operands.b);
  std::memcpy(operands.d, d, sizeof operands.d);
  simt::collective(&operands, sizeof operands, d, sizeof d, MmaOperands<S>::multiply, "mma_16816", {file, line});
}

// Atomics are not interrupted; before and after them other threads may run.
template <class F>
unsigned atomically(unsigned* p, F f) {
  simt::yield();
  const unsigned before = *p;
  *p = f(before);
  simt::yield();
  return before;
}
inline unsigned atomic_add(unsigned* p, unsigned v) {
  return atomically(p, [=](unsigned old) { return old + v; });
}
inline unsigned atomic_max(unsigned* p, unsigned v) {
  return atomically(p, [=](unsigned old) { return old > v ? old : v; });
}
inline unsigned atomic_exchange(unsigned* p, unsigned v) {
  return atomically(p, [=](unsigned) { return v; });
}
inline unsigned atomic_compare_exchange(unsigned* p, unsigned expected, unsigned v) {
  return atomically(p, [=](unsigned old) { return old == expected ? v : old; });
}
inline void store_release(unsigned* flag, unsigned v) { atomic_exchange(flag, v); }
inline void add_release(unsigned* flag, unsigned v) { atomic_add(flag, v); }
inline unsigned load_acquire(const unsigned* flag, SIMT_HERE) {
  simt::polled({file, line});
  return *flag;
}
inline void wait_flag(const unsigned* flag, unsigned value, SIMT_HERE) { simt::wait_flag(flag, value, {file, line}); }

inline unsigned cluster_rank() { return simt::self().cluster_rank; }
inline unsigned cluster_size() { return simt::self().cluster_size; }
inline void cluster_arrive(SIMT_HERE) { simt::cluster_arrive({file, line}); }
inline void cluster_wait(SIMT_HERE) { simt::cluster_wait({file, line}); }
inline void sync_cluster(SIMT_HERE) {
  simt::cluster_arrive({file, line});
  simt::cluster_wait({file, line});
}
struct Remote {
  char* shared;  // in the block that called remote()
  unsigned rank;
  Remote operator+(int bytes) const { return {shared + bytes, rank}; }
};
inline Remote remote(const void* shared, unsigned rank) {
  return {static_cast<char*>(const_cast<void*>(shared)), rank};
}
struct MBarrier {
  uint64_t state;
};
inline void mbarrier_init(MBarrier* barrier, SIMT_HERE) { simt::mbarrier_init(barrier, {file, line}); }
inline void mbarrier_expect(MBarrier* barrier, unsigned bytes, SIMT_HERE) {
  simt::mbarrier_expect(barrier, bytes, {file, line});
}
inline void mbarrier_wait(const MBarrier* barrier, unsigned parity, SIMT_HERE) {
  simt::mbarrier_wait(barrier, parity, {file, line});
}
inline void store_async16(bool condition, Remote to, const Bytes16& v, Remote barrier, SIMT_HERE) {
  if (!condition) return;
  check_aligned(to.shared);
  if (to.rank != barrier.rank) simt::fail("store_async16: the barrier is in another block than the bytes go to");
  simt::store_async16(to.shared, &v, barrier.shared, to.rank, {file, line});
}

constexpr int64_t kMaxGridY = 2, kProductBytes = 256;  // small, so that small tests loop too

struct Launch {
  Index grid, block;
  Stream stream = nullptr;
  size_t shared = 0;
  unsigned cluster = 1;
  bool cooperative = false;
};

template <class... P>
simt::LaunchInfo info(const char* name, void (*kernel)(P...), const Launch& config) {
  const unsigned bound = simt::launch_bound(reinterpret_cast<const void*>(kernel));
  return {name, bound, config.grid, config.block, config.shared, config.cluster, config.cooperative};
}

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const Launch& config, const A&... arguments) {
  simt::run(info(name, kernel, config), [&] { kernel(static_cast<P>(arguments)...); });
}

struct Chip {
  int device, multiprocessors;
  size_t shared_per_block;
};
inline Chip chip() {
  return {simt::device().number, int(simt::device().multiprocessors), simt::device().shared_per_block};
}

template <class... P>
int code_version(void (*)(P...)) {
  return simt::device().code_version;
}

template <class... P>
int resident_blocks(const char* name, void (*kernel)(P...), const Launch& config) {
  if (code_version(kernel) < 90) return 0;
  try {
    return int(simt::resident_blocks(info(name, kernel, config)));
  } catch (const simt::Error&) {
    return 0;
  }
}

}  // namespace cuda
}  // namespace lstmkern
