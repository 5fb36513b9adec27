// Times the GEMMs of product.inl, compiled for each instruction set, on a team of threads.
#include "product.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "memory.h"
#include "team.h"
#include "variants.h"

namespace lstmkern {
namespace cpu {
namespace {

// Computes the part `rounds` times, with the instruction set in use.
void multiply_part(const ProductPart& part, int64_t rounds) {
#if defined(__x86_64__)
  const std::string used = capability(part.product.dtype);
  if (used == "amx") return amx::multiply_part(part, rounds);
  if (used == "avx512_bf16") return avx512_bf16::multiply_part(part, rounds);
  if (used == "avx512") return avx512::multiply_part(part, rounds);
  if (used == "avx2") return avx2::multiply_part(part, rounds);
#endif
  baseline::multiply_part(part, rounds);
}

using Clock = std::chrono::steady_clock;

struct Measurement {
  const Product& product;
  char *panels, *rows;
  double seconds;
  Barrier start;
  std::unique_ptr<double[]> times;  // seconds of each thread for its part
};

void run(void* arg, int rank, int size) {
  Measurement& measured = *static_cast<Measurement*>(arg);
  const ProductPart part{measured.product, measured.panels, measured.rows, rank, size};
  auto timed = [&](int64_t rounds) {
    const auto begin = Clock::now();
    multiply_part(part, rounds);
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  // Enough rounds that the clock is read about every 50 microseconds. The first ones load the operands into the caches.
  int64_t rounds = 1;
  while (timed(rounds) < 50e-6) rounds *= 2;
  measured.start.wait(size);
  double elapsed = 0;
  int64_t done = 0;
  for (; elapsed < measured.seconds; done += rounds) elapsed += timed(rounds);
  measured.times[rank] = elapsed / done;
}

// Whether the instruction set in use multiplies bf16.
bool has_bf16_products() {
  const std::string used = capability(DType::bf16);
  return used == "amx" || used == "avx512_bf16";
}

// The operands' type in layers of a dtype (Types in steps.h).
DType operand_of(DType dtype) {
  if (dtype == DType::f64) return dtype;
  return dtype == DType::bf16 && has_bf16_products() ? DType::bf16 : DType::f32;
}

// Pseudo-random values between 1/2 and 3/2.
template <class Store>
void fill(int64_t count, Store&& store) {
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    store(i, 0.5f + (state >> 16) / 65536.0f);
  }
}

void fill(DType operand, char* memory, int64_t bytes) {
  if (operand == DType::f64)
    fill(bytes / 8, [&](int64_t i, float value) { reinterpret_cast<double*>(memory)[i] = value; });
  else if (operand == DType::f32)
    fill(bytes / 4, [&](int64_t i, float value) { reinterpret_cast<float*>(memory)[i] = value; });
  else  // bf16 is the upper half of an fp32
    fill(bytes / 2,
         [&](int64_t i, float value) { std::memcpy(memory + i * 2, reinterpret_cast<const char*>(&value) + 2, 2); });
}

}  // namespace

double product_seconds(const Product& p, int threads, double seconds) {
  if (p.rows < 1 || p.K < 1 || p.columns < 1 || threads < 1)
    throw std::invalid_argument("rows, K, columns and threads must be at least 1");
  if ((p.gates != 1 && p.gates != 3 && p.gates != 4) || (p.transposed && p.gates != 1))
    throw std::invalid_argument("gates must be 1, 3 or 4, and 1 if transposed");
  // Columns are padded to whole registers, rows to whole tiles or by spread() (common.inl): at most 128 bytes. K is
  // padded to whole tiles.
  const DType operand = operand_of(p.dtype);
  const int64_t size = operand == DType::f64 ? 8 : operand == DType::f32 ? 4 : 2, K = (p.K + 31) / 32 * 32;
  const int64_t panel_bytes = p.gates * (p.columns * size + 128) * K;
  const int64_t row_bytes = p.transposed ? 64 * size * K : p.rows * (size * K + 128);
  Workspace panels(panel_bytes), rows(row_bytes);
  for (auto [memory, bytes] : {std::pair(panels.data(), panel_bytes), std::pair(rows.data(), row_bytes)})
    fill(operand, memory, bytes);
  Measurement measured{p, panels.data(), rows.data(), seconds, {}, std::unique_ptr<double[]>(new double[threads]())};
  run_team(threads, run, &measured);
  return *std::max_element(measured.times.get(), measured.times.get() + threads);
}

}  // namespace cpu
}  // namespace lstmkern
