// Runs the products of product.inl, compiled for each instruction set, on a team and against the clock.
#include "product.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "variant.h"

namespace lstmkern {
namespace cpu {
namespace {

// One thread's part of a product.
struct ProductPart {
  const Product& product;
  const void *panels, *rows;
  int rank, size;
};
// Does it `rounds` times, by the kernels in use.
void multiply_part(const ProductPart& part, int64_t rounds);

using Clock = std::chrono::steady_clock;

struct Race {
  const Product& product;
  char *panels, *rows;
  double seconds;
  Barrier start;
  std::unique_ptr<double[]> took;  // by each thread for its part
};

void run(void* arg, int rank, int size) {
  Race& race = *static_cast<Race*>(arg);
  const ProductPart part{race.product, race.panels, race.rows, rank, size};
  auto timed = [&](int64_t rounds) {
    const auto begin = Clock::now();
    multiply_part(part, rounds);
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  // So many rounds that the clock is read about every 50 microseconds; the first ones bring the operands into caches.
  int64_t rounds = 1;
  while (timed(rounds) < 50e-6) rounds *= 2;
  race.start.wait(size);
  double elapsed = 0;
  int64_t done = 0;
  for (; elapsed < race.seconds; done += rounds) elapsed += timed(rounds);
  race.took[rank] = elapsed / done;
}

// Values between 1/2 and 3/2 in no order that a unit could profit from.
template <class C>
void fill(char* memory, int64_t bytes) {
  C* values = reinterpret_cast<C*>(memory);
  uint32_t state = 1;
  for (int64_t i = 0; i < bytes / static_cast<int64_t>(sizeof(C)); ++i) {
    state = state * 1664525 + 1013904223;
    values[i] = C(0.5) + C(state >> 16) / 65536;
  }
}

}  // namespace

double product_seconds(const Product& p, int threads, double seconds) {
  if (p.dtype != DType::f32 && p.dtype != DType::f64) throw std::invalid_argument("products are of fp32 or fp64");
  if (p.rows < 1 || p.K < 1 || p.columns < 1 || threads < 1)
    throw std::invalid_argument("rows, K, columns and threads must be at least 1");
  if ((p.gates != 1 && p.gates != 3 && p.gates != 4) || (p.down && p.gates != 1))
    throw std::invalid_argument("gates must be 1, 3 or 4, and 1 in a product of weight gradients");
  // Columns end at a register's, rows at a tile's or with `spread` (see common.inl): 128 bytes more hold either.
  const int64_t size = p.dtype == DType::f32 ? 4 : 8;
  const int64_t of_panels = p.gates * (p.columns * size + 128) * p.K;
  const int64_t of_rows = p.down ? 64 * size * p.K : p.rows * (size * p.K + 128);
  Workspace panels(of_panels), rows(of_rows);
  for (auto [memory, bytes] : {std::pair(panels.data(), of_panels), std::pair(rows.data(), of_rows)})
    size == 4 ? fill<float>(memory, bytes) : fill<double>(memory, bytes);
  Race race{p, panels.data(), rows.data(), seconds, {}, std::unique_ptr<double[]>(new double[threads]())};
  run_team(threads, run, &race);
  return *std::max_element(race.took.get(), race.took.get() + threads);
}

// After everything else: nothing from outside may be compiled for these targets.
#define LSTMKERN_BF16 0
namespace baseline {
#define LSTMKERN_VECTOR_BYTES 16
#include "product.inl"
#undef LSTMKERN_VECTOR_BYTES
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LSTMKERN_VECTOR_BYTES 32
#include "product.inl"
#undef LSTMKERN_VECTOR_BYTES
#pragma GCC pop_options
}  // namespace avx2

namespace avx512 {
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define LSTMKERN_VECTOR_BYTES 64
#include "product.inl"
#undef LSTMKERN_VECTOR_BYTES
#pragma GCC pop_options
}  // namespace avx512
#endif

namespace {
void multiply_part(const ProductPart& part, int64_t rounds) {
#if defined(__x86_64__)
  const std::string used = capability(DType::f32);
  if (used == "avx512") return avx512::multiply_part(part, rounds);
  if (used == "avx2") return avx2::multiply_part(part, rounds);
#endif
  baseline::multiply_part(part, rounds);
}
}  // namespace

}  // namespace cpu
}  // namespace lstmkern
