// The self-tests by name: which result a kernel of selftest.cu must give, or how it must fail.
#include <cmath>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

using namespace lstmkern::cuda;
using simt::Error;

template <class T>
T* buffer(size_t count, const char* name = "buffer") {
  return static_cast<T*>(simt::allocate(count * sizeof(T), name));
}

unsigned* numbers(size_t count) {
  unsigned* p = buffer<unsigned>(count, "in");
  for (size_t i = 0; i < count; ++i) p[i] = unsigned(i * 2654435761u % 1000);
  return p;
}

unsigned* zeros(size_t count) {
  unsigned* p = buffer<unsigned>(count, "flags");
  std::memset(p, 0, count * 4);
  return p;
}

void expect(bool right, const std::string& what) {
  if (!right) throw Error("wrong number: " + what);
}

Launch shape(Index grid, Index block, size_t shared = 0, unsigned cluster = 1, bool cooperative = false) {
  Launch config;
  config.grid = grid;
  config.block = block;
  config.shared = shared;
  config.cluster = cluster;
  config.cooperative = cooperative;
  return config;
}

template <bool Fault>
void test_block_sum() {
  const unsigned* in = numbers(5 * 256);
  unsigned* out = buffer<unsigned>(5);
  launch("block_sum", block_sum<Fault>, shape({5, 1, 1}, {256, 1, 1}), out, in);
  for (int b = 0; b < 5; ++b) {
    unsigned sum = 0;
    for (int i = 0; i < 256; ++i) sum += in[b * 256 + i];
    expect(out[b] == sum, "sum of a block");
  }
}

void test_where() {
  unsigned* out = buffer<unsigned>(2 * 3 * 2 * 96);
  launch("where", where, shape({2, 3, 2}, {4, 8, 3}), out);
  for (unsigned block = 0; block < 12; ++block)
    for (unsigned i = 0; i < 96; ++i)
      expect(out[block * 96 + i] ==
                 i % 4 + 10 * (i / 4 % 8) + 100 * (i / 32) + 1000 * block + 100000 * (i % 32) + 10000000 * (i / 32),
             "indices");
}

void test_warp() {
  const unsigned* in = numbers(64);
  unsigned* out = buffer<unsigned>(64 * 5);
  launch("warp_talk", warp_talk, shape({1, 1, 1}, {64, 1, 1}), out, in);
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned first = i / 32 * 32, lane = i % 32;
    unsigned sum = 0, bits = 0;
    for (unsigned k = 0; k < 32; ++k) {
      sum += in[first + k];
      bits |= (in[first + k] & 1) << k;
    }
    const unsigned want[5] = {sum, in[first + 3], in[lane + 5 < 32 ? i + 5 : i], in[lane >= 5 ? i - 5 : i], bits};
    for (int k = 0; k < 5; ++k) expect(out[i * 5 + k] == want[k], "warp collective " + std::to_string(k));
  }
}

void test_dynamic() {
  const unsigned* in = numbers(20000);
  unsigned* out = buffer<unsigned>(20000);
  launch("dynamic_reverse", dynamic_reverse, shape({1, 1, 1}, {32, 1, 1}, 80000), out, in, 20000u);
  for (int i = 0; i < 20000; ++i) expect(out[i] == in[19999 - i], "reversed");
}

template <class S>
void test_mma() {
  S *a = buffer<S>(256), *b = buffer<S>(128);
  float* out = buffer<float>(128);
  std::vector<float> want(128);
  auto value = [](int i) { return float(int(unsigned(i) * 2654435761u % 97) - 48) / 16; };  // exact in 16 bits
  for (int i = 0; i < 256; ++i) narrow(value(i + 7), a[i]);
  for (int i = 0; i < 128; ++i) narrow(value(3 * i + 1), b[i]);
  for (int i = 0; i < 128; ++i) want[i] = out[i] = value(i + 1000);
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 8; ++c)
      for (int k = 0; k < 16; ++k) want[r * 8 + c] += widen(a[r * 16 + k]) * widen(b[k * 8 + c]);
  launch("tile_product", tile_product<S>, shape({1, 1, 1}, {32, 1, 1}), out, static_cast<const S*>(a),
         static_cast<const S*>(b));
  for (int i = 0; i < 128; ++i) expect(out[i] == want[i], "element " + std::to_string(i) + " of a tile product");
}

template <int Fault>
void test_async() {
  const unsigned* in = numbers(6 * 128);
  unsigned* out = buffer<unsigned>(6 * 128);
  launch("async_reverse", async_reverse<Fault>, shape({1, 1, 1}, {32, 1, 1}), out, in, 6u);
  for (int r = 0; r < 6; ++r)
    for (int i = 0; i < 128; ++i) expect(out[r * 128 + i] == in[r * 128 + 127 - i], "copied");
}

void test_atomics() {
  unsigned* out = zeros(3);
  launch("count", count, shape({7, 1, 1}, {64, 1, 1}), out);
  expect(out[0] == 7 * 64 && out[1] == 63 && out[2] == 2 * 7 * 64, "counts");
}

template <int Fault>
void test_relay() {
  unsigned *out = buffer<unsigned>(9 * 32), *flags = zeros(9);
  launch("relay", relay<Fault>, shape({9, 1, 1}, {32, 1, 1}, 0, 1, true), out, flags);
  for (unsigned b = 0; b < 9; ++b)
    for (unsigned i = 0; i < 32; ++i) expect(out[b * 32 + i] == b * (b + 1) / 2, "passed on");
}

void test_turns() {
  unsigned *out = buffer<unsigned>(8), *flag = zeros(1);
  launch("turns", turns, shape({8, 1, 1}, {32, 1, 1}, 0, 1, true), out, flag);
  for (unsigned b = 0; b < 8; ++b) expect(out[b] == b, "turn");
}

template <int Fault>
void test_cluster(unsigned size) {
  unsigned* out = buffer<unsigned>(3 * size * 32);
  launch("all_gather", all_gather<Fault>, shape({3 * size, 1, 1}, {32, 1, 1}, 0, size), out, 5u);
  for (unsigned b = 0; b < 3 * size; ++b)
    for (unsigned i = 0; i < 32; ++i) {
      unsigned want = 0;
      for (unsigned round = 0; round < 3; ++round)
        for (unsigned r = 0; r < size; ++r) want += 5 + round * 10000 + r * 100 + i;
      expect(out[b * 32 + i] == want, "gathered");
    }
}

void test_load_four() {
  const unsigned* in = numbers(128);
  unsigned* out = buffer<unsigned>(128);
  launch("load_four", load_four, shape({1, 1, 1}, {32, 1, 1}), out, in);
  for (unsigned m = 0; m < 4; ++m)
    for (unsigned lane = 0; lane < 32; ++lane)
      expect(out[m * 32 + lane] == in[m * 32 + lane / 4 * 4 + lane % 4], "matrix " + std::to_string(m));
}

void test_halves() {
  for (unsigned bits = 0; bits < 65536; ++bits) {  // a round trip of every value
    f16 h{uint16_t(bits)}, h2;
    bf16 b{uint16_t(bits)}, b2;
    narrow(widen(h), h2);
    narrow(widen(b), b2);
    expect(widen(h) != widen(h) ? widen(h2) != widen(h2) : h2.bits == h.bits, "f16 " + std::to_string(bits));
    expect(widen(b) != widen(b) ? widen(b2) != widen(b2) : b2.bits == b.bits, "bf16 " + std::to_string(bits));
  }
  auto f16_of = [](float v) {
    f16 h;
    narrow(v, h);
    return unsigned(h.bits);
  };
  auto bf16_of = [](float v) {
    bf16 h;
    narrow(v, h);
    return unsigned(h.bits);
  };
  // Ties go to even, sums just below the largest do not overflow, small ones become subnormal.
  expect(f16_of(1 + 0x1p-11f) == 0x3c00 && f16_of(1 + 0x3p-11f) == 0x3c02 && f16_of(65519.0f) == 0x7bff &&
             f16_of(65520.0f) == 0x7c00 && f16_of(0x1p-25f) == 0 && f16_of(0x3p-25f) == 2 && f16_of(-2.0f) == 0xc000,
         "rounding to f16");
  expect(bf16_of(1 + 0x1p-8f) == 0x3f80 && bf16_of(1 + 0x3p-8f) == 0x3f82 && bf16_of(3.4e38f) == 0x7f80,
         "rounding to bf16");
}

void no_kernel() {}
void run_nothing(Launch config) { launch("nothing", nothing, config); }

template <class... P, class... A>
void run_small(void (*kernel)(P...), unsigned threads, A... arguments) {
  launch("kernel", kernel, shape({1, 1, 1}, {threads, 1, 1}), arguments...);
}

void run_selftest(const std::string& name) {
  const std::map<std::string, void (*)()> tests = {
      {"where", test_where},
      {"block_sum", test_block_sum<false>},
      {"warp", test_warp},
      {"dynamic", test_dynamic},
      {"mma_bf16", test_mma<bf16>},
      {"mma_f16", test_mma<f16>},
      {"load_matrices", test_load_four},
      {"async", test_async<0>},
      {"atomics", test_atomics},
      {"relay", test_relay<0>},
      {"turns", test_turns},
      {"cluster_4", [] { test_cluster<0>(4); }},
      {"cluster_16", [] { test_cluster<0>(16); }},
      {"halves", test_halves},
      // Faults that show as a wrong number, in some orders.
      {"block_sum_without_barrier", test_block_sum<true>},
      {"async_waits_too_little", test_async<1>},
      {"async_without_barrier", test_async<2>},
      {"flag_before_data", test_relay<1>},
      {"cluster_does_not_wait", [] { test_cluster<1>(4); }},
      {"cluster_waits_for_the_phase_before", [] { test_cluster<5>(4); }},
      // Faults that are reported, in every order.
      {"unpublished_flag", test_relay<2>},
      {"cluster_incomplete", [] { test_cluster<3>(4); }},
      {"cluster_ends_early", [] { test_cluster<2>(4); }},
      {"bytes_that_do_not_come", [] { test_cluster<4>(4); }},
      {"barrier_for_some", [] { run_small(barrier_for_some, 64); }},
      {"two_barriers", [] { run_small(two_barriers, 64); }},
      {"shuffle_for_some", [] { run_small(shuffle_for_some, 64, buffer<unsigned>(64)); }},
      {"shuffle_in_odd_block", [] { run_small(warp_talk, 48, buffer<unsigned>(320), (const unsigned*)numbers(64)); }},
      {"flag_nobody_sets", [] { run_small(flag_nobody_sets, 32, zeros(1)); }},
      {"poll_nobody_answers", [] { run_small(poll_nobody_answers, 32, zeros(1)); }},
      {"past_shared", [] { run_small(past_shared, 32, buffer<unsigned>(32), 4u); }},
      {"past_buffer", [] { run_small(past_buffer, 32, buffer<unsigned>(32), 1u); }},
      {"misaligned", [] { run_small(misaligned, 32, buffer<float>(200)); }},
      {"threads", [] { run_nothing(shape({1, 1, 1}, {1025, 1, 1})); }},
      {"threads_in_all", [] { run_nothing(shape({1, 1, 1}, {64, 32, 1})); }},
      {"kernel's_bound", [] { run_small(nothing_for_warps<3>, 97); }},
      {"kernel's_bound_in_all", [] { launch("kernel", nothing_for_warps<3>, shape({1, 1, 1}, {32, 4, 1})); }},
      {"no_kernel", [] { run_small(no_kernel, 32); }},
      {"empty_grid", [] { run_nothing(shape({0, 1, 1}, {32, 1, 1})); }},
      {"grid_y", [] { run_nothing(shape({1, 65536, 1}, {32, 1, 1})); }},
      {"shared_memory", [] { run_nothing(shape({1, 1, 1}, {32, 1, 1}, 227 * 1024 + 1)); }},
      {"cluster_too_large", [] { run_nothing(shape({32, 1, 1}, {32, 1, 1}, 0, 32)); }},
      {"cluster_uneven", [] { run_nothing(shape({6, 1, 1}, {32, 1, 1}, 0, 4)); }},
      {"cooperative_too_large", [] { run_nothing(shape({133, 1, 1}, {32, 1, 1}, 200 * 1024, 1, true)); }},
      // Not an error, but the values that are read are NaN.
      {"unwritten_shared",
       [] {
         unsigned* out = buffer<unsigned>(32);
         launch("unwritten_shared", unwritten_shared, shape({1, 1, 1}, {32, 1, 1}), out);
         for (int i = 0; i < 32; ++i) expect(out[i] == 0xffffffffu, "poison");
       }},
      {"within_the_bound",
       [] {
         run_small(nothing_for_warps<3>, 96);
         const Launch config = shape({1, 1, 1}, {96, 1, 1}), more = shape({1, 1, 1}, {97, 1, 1});
         expect(resident_blocks("kernel", nothing_for_warps<3>, config) > 0, "blocks within the bound");
         expect(resident_blocks("kernel", nothing_for_warps<3>, more) == 0, "blocks beyond the bound");
       }},
      {"cooperative_fits", [] { run_nothing(shape({132, 1, 1}, {32, 1, 1}, 200 * 1024, 1, true)); }},
  };
  auto test = tests.find(name);
  if (test == tests.end()) throw Error("no self-test " + name);
  test->second();
}

}  // namespace

extern "C" int simt_selftest(const char* name, uint64_t seed, char* message, size_t length) {
  try {
    simt::seed(seed);
    simt::free_all();
    run_selftest(name);
    simt::check_guards();
    simt::free_all();
    return 0;
  } catch (const std::exception& e) {
    std::strncpy(message, e.what(), length - 1);
    message[length - 1] = 0;
    simt::free_all();
    return 1;
  }
}
