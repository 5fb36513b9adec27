// The CUDA primitives that the kernels of this library use; they use no others. tests/simt/simt.h defines the same
// names for a CPU, so that the kernels can be run without a GPU, with their threads in random order.
//
// Terms: a grid has blocks, a block has warps of 32 lanes. Blocks may form clusters, whose blocks can access each
// other's shared memory. Functions named sync_*, shuffle*, ballot, mma_* and load_matrices are collective: all threads
// of the group must call them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(LSTMKERN_SIMT)
#include "simt.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// A kernel's definition: `template <...> LSTMKERN_KERNEL(threads[, blocks per multiprocessor]) name(parameters)`.
#define LSTMKERN_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define LSTMKERN_DEVICE __device__ __forceinline__
#define LSTMKERN_BOTH __host__ __device__ __forceinline__
// Shared memory of a block: a fixed number of elements, or as many as the launch requests.
#define LSTMKERN_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define LSTMKERN_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char lstmkern_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(lstmkern_dynamic_shared)

// Kernels that need compute capability 9.0 have an empty body in code for earlier devices.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define LSTMKERN_HOPPER 1
#else
#define LSTMKERN_HOPPER 0
#endif

namespace lstmkern {
namespace cuda {

typedef void* Stream;  // cudaStream_t, without its header

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// --- where a thread is ---

LSTMKERN_DEVICE Index thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
LSTMKERN_DEVICE Index block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
LSTMKERN_DEVICE Index block_size() { return {blockDim.x, blockDim.y, blockDim.z}; }
LSTMKERN_DEVICE Index grid_size() { return {gridDim.x, gridDim.y, gridDim.z}; }
LSTMKERN_DEVICE unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
LSTMKERN_DEVICE unsigned lane_index() { return thread_rank() % 32; }
LSTMKERN_DEVICE unsigned warp_index() { return thread_rank() / 32; }

// --- numbers ---

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

LSTMKERN_BOTH float widen(float v) { return v; }
LSTMKERN_BOTH double widen(double v) { return v; }
LSTMKERN_DEVICE float widen(bf16 v) { return __uint_as_float(static_cast<unsigned>(v.bits) << 16); }
LSTMKERN_DEVICE float widen(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
LSTMKERN_DEVICE void narrow(float v, float& to) { to = v; }
LSTMKERN_DEVICE void narrow(double v, double& to) { to = v; }
LSTMKERN_DEVICE void narrow(float v, bf16& to) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
LSTMKERN_DEVICE void narrow(float v, f16& to) { to.bits = __half_as_ushort(__float2half_rn(v)); }

// Two values that are next to each other in memory, in one register.
LSTMKERN_DEVICE unsigned narrow_two(float low, float high, bf16) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  unsigned bits;
  memcpy(&bits, &both, 4);
  return bits;
}
LSTMKERN_DEVICE unsigned narrow_two(float low, float high, f16) {
  const __half2 both = __floats2half2_rn(low, high);
  unsigned bits;
  memcpy(&bits, &both, 4);
  return bits;
}

// Host and device functions, because cells.h, which calls them, is compiled for both.
LSTMKERN_BOTH float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}
LSTMKERN_BOTH float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }
LSTMKERN_BOTH double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
LSTMKERN_BOTH float tanh(float x) { return tanhf(x); }
LSTMKERN_BOTH double tanh(double x) { return ::tanh(x); }

// --- memory, 16 bytes at once (aligned) ---

struct alignas(16) Bytes16 {
  unsigned word[4];
};

LSTMKERN_DEVICE Bytes16 load16(const void* p) {
  const uint4 v = *static_cast<const uint4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}
LSTMKERN_DEVICE void store16(void* p, const Bytes16& v) {
  *static_cast<uint4*>(p) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// Loads a value without converting it, into a 32-bit register. A 16-bit register would have to be widened at once, and
// that conversion would wait for the load.
LSTMKERN_DEVICE float load_raw(const float* p) { return *p; }
template <class S>
LSTMKERN_DEVICE unsigned load_raw(const S* p) {
  static_assert(sizeof(S) <= 2, "bf16, f16, bool");
  unsigned v;
  if constexpr (sizeof(S) == 2)
    asm volatile("ld.global.u16 %0, [%1];" : "=r"(v) : "l"(p));
  else
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

// Stores to global memory with one instruction. The compiler may split a store16() into four.
LSTMKERN_DEVICE void store_global16(void* p, const Bytes16& v) {
  asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]),
               "r"(v.word[3])
               : "memory");
}

// Copies from global to shared memory without registers. A thread's copies since its last commit form a group.
// async_wait<N> returns when all groups of the calling thread except the newest N are complete. The other threads of
// the block see the data after a barrier.
LSTMKERN_DEVICE void async_copy16(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
LSTMKERN_DEVICE void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
LSTMKERN_DEVICE void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// --- within a block ---

LSTMKERN_DEVICE void sync_block() { __syncthreads(); }

// --- within a warp; all 32 lanes take part ---

constexpr unsigned kFullWarp = 0xffffffffu;
LSTMKERN_DEVICE void sync_warp() { __syncwarp(kFullWarp); }
template <class T>
LSTMKERN_DEVICE T shuffle(T v, unsigned from) {
  return __shfl_sync(kFullWarp, v, static_cast<int>(from));
}
template <class T>
LSTMKERN_DEVICE T shuffle_down(T v, unsigned by) {  // lanes past the end keep their own value
  return __shfl_down_sync(kFullWarp, v, by);
}
template <class T>
LSTMKERN_DEVICE T shuffle_up(T v, unsigned by) {
  return __shfl_up_sync(kFullWarp, v, by);
}
template <class T>
LSTMKERN_DEVICE T shuffle_xor(T v, unsigned mask) {
  return __shfl_xor_sync(kFullWarp, v, static_cast<int>(mask));
}
LSTMKERN_DEVICE unsigned ballot(bool predicate) { return __ballot_sync(kFullWarp, predicate); }

// Loads four 8 x 8 matrices of 16-bit values from shared memory. Lanes 8 m to 8 m + 7 give the addresses of the rows of
// matrix m, 16 bytes each (aligned). r[m] receives row lane / 4, columns 2 (lane % 4) and the next.
LSTMKERN_DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// d += a b for tiles a [16, 16], b [16, 8], d [16, 8] spread over a warp as the PTX manual lays out mma.m16n8k16. With
// g = lane / 4, q = lane % 4, low half of a register first:
//   a[0] = a(g, 2q..2q+1), a[1] = a(g+8, 2q..), a[2] = a(g, 2q+8..), a[3] = a(g+8, 2q+8..)
//   b[0] = b(2q..2q+1, g), b[1] = b(2q+8.., g);   d[0..1] = d(g, 2q..2q+1), d[2..3] = d(g+8, 2q..2q+1)
LSTMKERN_DEVICE void mma_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bf16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
LSTMKERN_DEVICE void mma_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], f16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// --- between blocks ---

// Only for integers, whose sums do not depend on the order.
LSTMKERN_DEVICE unsigned atomic_add(unsigned* p, unsigned v) { return atomicAdd(p, v); }
LSTMKERN_DEVICE unsigned atomic_max(unsigned* p, unsigned v) { return atomicMax(p, v); }
LSTMKERN_DEVICE unsigned atomic_exchange(unsigned* p, unsigned v) { return atomicExch(p, v); }
LSTMKERN_DEVICE unsigned atomic_compare_exchange(unsigned* p, unsigned expected, unsigned v) {
  return atomicCAS(p, expected, v);
}

constexpr long long kMaxWaitClocks = 1ll << 33;  // clocks, some seconds

// Flags in global memory. A thread that acquires a released value sees what the releasing thread wrote before the
// release. It also sees the writes of that thread's block if a sync_block separates them from the release.
LSTMKERN_DEVICE void store_release(unsigned* flag, unsigned v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}
LSTMKERN_DEVICE void add_release(unsigned* flag, unsigned v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}
LSTMKERN_DEVICE unsigned load_acquire(const unsigned* flag) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
// Waits until the flag has reached `value`, also across the wrap from 2^32 - 1 to 0. All blocks must be resident at the
// same time. If the flag is never set, the kernel traps after kMaxPolls polls (some seconds) and the launch fails;
// without that limit the GPU would hang.
constexpr unsigned kMaxPolls = 1u << 23;
LSTMKERN_DEVICE void wait_flag(const unsigned* flag, unsigned value) {
  for (unsigned polls = 0; static_cast<int>(load_acquire(flag) - value) < 0;)
    if (++polls == kMaxPolls) __trap();
}

// --- within a cluster (compute capability 9.0 and later) ---

// A barrier in shared memory that counts arriving bytes. A phase ends when mbarrier_expect has announced a number of
// bytes and that many bytes have arrived, in either order. Phases alternate between parity 0 (the first) and 1.
// mbarrier_wait returns when the phase of the given parity has ended, at once if it already has.
struct MBarrier {
  uint64_t state;
};

#if LSTMKERN_HOPPER
LSTMKERN_DEVICE unsigned cluster_rank() {
  unsigned v;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
  return v;
}
LSTMKERN_DEVICE unsigned cluster_size() {
  unsigned v;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(v));
  return v;
}
// Without .aligned: the lanes of a warp may arrive at different times.
LSTMKERN_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
LSTMKERN_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
LSTMKERN_DEVICE void sync_cluster() {
  cluster_arrive();
  cluster_wait();
}

// The address of a shared variable in another block of the cluster. That block must have started (sync_cluster first)
// and must not have ended.
struct Remote {
  unsigned at;
  LSTMKERN_DEVICE Remote operator+(int bytes) const { return {at + static_cast<unsigned>(bytes)}; }
};
LSTMKERN_DEVICE Remote remote(const void* shared, unsigned rank) {
  const unsigned here = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  Remote r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r.at) : "r"(here), "r"(rank));
  return r;
}

// Initializes a barrier. A sync_cluster must follow before any thread uses it.
LSTMKERN_DEVICE void mbarrier_init(MBarrier* barrier) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(at) : "memory");
}
LSTMKERN_DEVICE void mbarrier_expect(MBarrier* barrier, unsigned bytes) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
LSTMKERN_DEVICE bool mbarrier_try(const MBarrier* barrier, unsigned parity) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(barrier));
  unsigned over;
  asm volatile(
      "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
      : "=r"(over)
      : "r"(at), "r"(parity)
      : "memory");
  return over != 0;
}
// Traps if the phase does not end within some seconds, so that a fault does not hang the device. The wait acquires at
// block scope. Cluster scope would add a flush of the L1 cache, which is not needed: the bytes are in shared memory.
LSTMKERN_DEVICE void mbarrier_wait(const MBarrier* barrier, unsigned parity) {
  if (mbarrier_try(barrier, parity)) return;
  const long long start = clock64();
  while (!mbarrier_try(barrier, parity))
    if (clock64() - start > kMaxWaitClocks) __trap();
}
// If `condition` holds, writes 16 bytes to a block of the cluster and counts them at `barrier`, a barrier of the same
// block. A thread sees the bytes after it has waited for that barrier.
LSTMKERN_DEVICE void store_async16(bool condition, Remote to, const Bytes16& v, Remote barrier) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %6, 0;\n\t"
      "@p st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];\n\t}" ::"r"(to.at),
      "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3]), "r"(barrier.at),
      "r"(static_cast<unsigned>(condition))
      : "memory");
}
#endif

}  // namespace cuda
}  // namespace lstmkern

#include "launch.h"
#endif  // LSTMKERN_SIMT
