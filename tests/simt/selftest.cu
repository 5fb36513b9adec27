// Every primitive of device.h in a small kernel with a known answer, and kernels with faults that the simulator must
// find. nvcc compiles the kernels too, so the signatures on both sides cannot differ.
#include "../../csrc/cuda/device.h"

namespace lstmkern {
namespace cuda {
namespace {

// --- kernels with an answer ---

LSTMKERN_KERNEL(1024) where(unsigned* out) {
  const Index t = thread_index(), b = block_index(), n = block_size(), g = grid_size();
  const unsigned block = b.x + g.x * (b.y + g.y * b.z);
  out[block * n.x * n.y * n.z + thread_rank()] =
      t.x + 10 * t.y + 100 * t.z + 1000 * block + 100000 * lane_index() + 10000000 * warp_index();
}

// A tree sum in shared memory. With the fault, one barrier is missing.
template <bool Fault>
LSTMKERN_KERNEL(256)
block_sum(unsigned* out, const unsigned* in) {
  LSTMKERN_SHARED(unsigned, shared, 256);
  const unsigned i = thread_rank();
  shared[i] = in[block_index().x * 256 + i];
  for (unsigned half = 128; half; half /= 2) {
    if (!Fault || half != 32) sync_block();
    if (i < half) shared[i] += shared[i + half];
  }
  if (i == 0) out[block_index().x] = shared[0];
}

LSTMKERN_KERNEL(64) warp_talk(unsigned* out, const unsigned* in) {
  const unsigned i = thread_rank(), v = in[i];
  unsigned sum = v;
  for (unsigned by = 16; by; by /= 2) sum += shuffle_xor(sum, by);
  unsigned* to = out + i * 5;
  to[0] = sum;
  to[1] = shuffle(v, 3);
  to[2] = shuffle_down(v, 5);
  to[3] = shuffle_up(v, 5);
  to[4] = ballot(v & 1);
  sync_warp();
}

LSTMKERN_KERNEL(32) dynamic_reverse(unsigned* out, const unsigned* in, unsigned n) {
  LSTMKERN_DYNAMIC_SHARED(unsigned, shared);
  for (unsigned i = thread_rank(); i < n; i += 32) shared[i] = in[i];
  sync_block();
  for (unsigned i = thread_rank(); i < n; i += 32) out[i] = shared[n - 1 - i];
}

// One 16 x 8 x 16 matrix product; a [16, 16] and b [16, 8] are stored by rows.
template <class S>
LSTMKERN_KERNEL(32)
tile_product(float* out, const S* a, const S* b) {
  const unsigned group = lane_index() / 4, member = lane_index() % 4;
  unsigned fragment_a[4], fragment_b[2];
  for (unsigned r = 0; r < 4; ++r) {
    const S* from = a + (group + r % 2 * 8) * 16 + member * 2 + r / 2 * 8;
    fragment_a[r] = from[0].bits | static_cast<unsigned>(from[1].bits) << 16;
  }
  for (unsigned r = 0; r < 2; ++r) {
    const S* from = b + (member * 2 + r * 8) * 8 + group;
    fragment_b[r] = from[0].bits | static_cast<unsigned>(from[8].bits) << 16;
  }
  float d[4];
  for (unsigned r = 0; r < 4; ++r) d[r] = out[(group + r / 2 * 8) * 8 + member * 2 + r % 2];
  mma_16816(d, fragment_a, fragment_b, S{});
  for (unsigned r = 0; r < 4; ++r) out[(group + r / 2 * 8) * 8 + member * 2 + r % 2] = d[r];
}

// Four matrices at once, [4, 8, 8] of 16 bits.
LSTMKERN_KERNEL(32) load_four(unsigned* out, const unsigned* in) {
  LSTMKERN_SHARED(unsigned, shared, 128);
  for (unsigned i = thread_rank(); i < 128; i += 32) shared[i] = in[i];
  sync_block();
  unsigned r[4];
  load_matrices(r, shared + 4 * lane_index());
  for (unsigned m = 0; m < 4; ++m) out[m * 32 + lane_index()] = r[m];
}

// Copies through two buffers: one is filled while the other is read. Faults: 1 waits for too few copies, 2 has no
// barrier.
template <int Fault>
LSTMKERN_KERNEL(32)
async_reverse(unsigned* out, const unsigned* in, unsigned rounds) {
  LSTMKERN_SHARED(unsigned, buffer, 2 * 128);
  const unsigned i = thread_rank();
  async_copy16(buffer + 4 * i, in + 4 * i);
  async_commit();
  for (unsigned round = 0; round < rounds; ++round) {
    if (round + 1 < rounds) async_copy16(buffer + (round + 1) % 2 * 128 + 4 * i, in + (round + 1) * 128 + 4 * i);
    async_commit();
    async_wait<Fault == 1 ? 2 : 1>();
    if (Fault != 2) sync_block();
    for (unsigned k = 0; k < 4; ++k) out[round * 128 + 4 * i + k] = buffer[round % 2 * 128 + 127 - 4 * i - k];
    sync_block();
  }
}

LSTMKERN_KERNEL(64) count(unsigned* out) {
  atomic_add(out, 1);
  atomic_max(out + 1, thread_rank());
  unsigned expected = 0;
  while (true) {
    const unsigned before = atomic_compare_exchange(out + 2, expected, expected + 2);
    if (before == expected) break;
    expected = before;
  }
}

// Blocks pass a number on, and each adds its index: data first, then a flag. Faults: 1 flag before data, 2 no flag.
template <int Fault>
LSTMKERN_KERNEL(32)
relay(unsigned* out, unsigned* flags) {
  LSTMKERN_SHARED(unsigned, got, 1);
  const unsigned b = block_index().x, i = thread_rank();
  if (i == 0) {
    if (b) wait_flag(flags + b - 1, 1);
    got[0] = b ? out[(b - 1) * 32] : 0;
    if (Fault == 1) store_release(flags + b, 1);
  }
  sync_block();
  out[b * 32 + i] = got[0] + b;
  sync_block();
  if (i == 0 && Fault == 0) {
    if (b % 2)
      add_release(flags + b, 1);
    else
      store_release(flags + b, 1);
  }
}

// Each block waits for its turn by polling.
LSTMKERN_KERNEL(32) turns(unsigned* out, unsigned* flag) {
  if (thread_rank()) return;
  while (load_acquire(flag) != block_index().x) {
  }
  out[block_index().x] = *flag;
  add_release(flag, 1);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Each block writes its part to every block of its cluster: three rounds, two buffers. Faults: 1 does not wait, 2 ends
// too early, 3 one block does not take part, 4 waits for more bytes than arrive, 5 waits for the phase before.
template <int Fault>
LSTMKERN_KERNEL(32)
all_gather(unsigned* out, unsigned base) {
  LSTMKERN_SHARED(unsigned, all, 2 * 16 * 32);
  LSTMKERN_SHARED(MBarrier, barriers, 2);
  const unsigned rank = cluster_rank(), size = cluster_size(), i = thread_rank();
  if (Fault == 3 && rank == 1) return;
  const unsigned bytes = size * 32 * 4 + (Fault == 4 ? 16 : 0);
  if (i < 2) {
    mbarrier_init(barriers + i);
    mbarrier_expect(barriers + i, bytes);
  }
  sync_cluster();
  unsigned sum = 0;
  for (unsigned round = 0; round < 3; ++round) {
    const unsigned at = round % 2, first = base + round * 10000 + rank * 100 + i * 4;
    for (unsigned r = 0; r < size; ++r)
      store_async16(i < 8, remote(all, r) + static_cast<int>(((at * 16 + rank) * 32 + i * 4) * 4),
                    Bytes16{{first, first + 1, first + 2, first + 3}},
                    remote(barriers, r) + static_cast<int>(at * sizeof(MBarrier)));
    if (Fault == 2 && round == 2) return;
    if (Fault != 1) mbarrier_wait(barriers + at, (round / 2 + (Fault == 5)) % 2);
    if (i == 0 && round == 0) mbarrier_expect(barriers, bytes);
    for (unsigned r = 0; r < size; ++r) sum += all[(at * 16 + r) * 32 + i];
    sync_block();
  }
  out[block_index().x * 32 + i] = sum;
}
#endif

// --- kernels with a fault ---

LSTMKERN_KERNEL(64) barrier_for_some() {
  if (thread_rank() != 7) sync_block();
}
LSTMKERN_KERNEL(64) two_barriers() {
  if (thread_rank() < 32)
    sync_block();
  else
    sync_block();
}
LSTMKERN_KERNEL(64) shuffle_for_some(unsigned* out) {
  if (thread_rank() % 2) out[thread_rank()] = shuffle(thread_rank(), 0);
}
LSTMKERN_KERNEL(32) flag_nobody_sets(unsigned* flag) { wait_flag(flag, 1); }
LSTMKERN_KERNEL(32) poll_nobody_answers(unsigned* flag) {
  while (load_acquire(flag) == 0) {
  }
}
LSTMKERN_KERNEL(32) past_shared(unsigned* out, unsigned n) {
  LSTMKERN_SHARED(unsigned, shared, 32);
  shared[thread_rank() + n] = 1;
  sync_block();
  out[thread_rank()] = shared[thread_rank()];
}
LSTMKERN_KERNEL(32) past_buffer(unsigned* out, unsigned n) { out[thread_rank() + n] = 1; }
LSTMKERN_KERNEL(32) misaligned(float* out) { store16(out + thread_rank() * 4 + 1, load16(out + thread_rank() * 4)); }
LSTMKERN_KERNEL(32) unwritten_shared(unsigned* out) {
  LSTMKERN_SHARED(unsigned, shared, 32);
  out[thread_rank()] = shared[thread_rank()];
}
LSTMKERN_KERNEL(1024) nothing() {}
template <int WARPS>
LSTMKERN_KERNEL(WARPS * 32)
nothing_for_warps() {}

// Instantiates the kernels for nvcc.
template <class... P>
void use(void (*kernel)(P...), P... arguments) {
  launch("selftest", kernel, Launch{}, arguments...);
}

}  // namespace

#if !defined(LSTMKERN_SIMT)
void compile_all(unsigned* u, const bf16* b, const f16* h, float* f) {
  use(where, u);
  use<unsigned*, const unsigned*>(block_sum<false>, u, u);
  use<unsigned*, const unsigned*>(warp_talk, u, u);
  use<unsigned*, const unsigned*, unsigned>(dynamic_reverse, u, u, 1);
  use(tile_product<bf16>, f, b, b);
  use(tile_product<f16>, f, h, h);
  use<unsigned*, const unsigned*>(load_four, u, u);
  use<unsigned*, const unsigned*, unsigned>(async_reverse<0>, u, u, 1);
  use(count, u);
  use(relay<0>, u, u);
  use(turns, u, u);
  use(all_gather<0>, u, 1u);
  use(barrier_for_some);
  use(two_barriers);
  use(shuffle_for_some, u);
  use(flag_nobody_sets, u);
  use(poll_nobody_answers, u);
  use(past_shared, u, 1u);
  use(past_buffer, u, 1u);
  use(misaligned, f);
  use(unwritten_shared, u);
  use(nothing);
  use(nothing_for_warps<3>);
}
#endif

}  // namespace cuda
}  // namespace lstmkern

#if defined(LSTMKERN_SIMT)
#include "selftest_main.inl"
#endif
