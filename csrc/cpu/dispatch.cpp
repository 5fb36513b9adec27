// Picks the kernel variants for this machine, once. LSTMKERN_CPU_CAPABILITY lowers the choice.
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "calls.h"
#include "variants.h"

namespace lstmkern {
namespace cpu {
namespace {

struct Variant {
  const char* name;
  bool usable;
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
  Work (*work_of)(const Backward&, bool);
  bool bf16_only;
};

#if defined(__x86_64__)
// The tile registers are large, so a process must request them from Linux.
bool amx_granted() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // bf16, tiles
#if defined(__linux__) && defined(SYS_arch_prctl)
  const int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

struct Choice {
  Variant all, bf16;
  std::vector<const char*> compiled;  // names, best first
};

// The best usable variant, at most the one that the environment variable names.
Choice choose() {
  const char* requested = std::getenv("LSTMKERN_CPU_CAPABILITY");
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
  // Intel's cores multiply pairs at half the rate of single values (Sapphire Rapids: 0.7 of the speed), so there they
  // are used on request only.
  const bool fast_pairs =
      pairs && (!__builtin_cpu_is("intel") || (requested && std::strcmp(requested, "avx512_bf16") == 0));
  const Variant variants[] = {
      {"amx", pairs && amx_granted(), amx::forward, amx::backward, amx::work_of, true},
      {"avx512_bf16", fast_pairs, avx512_bf16::forward, avx512_bf16::backward, avx512_bf16::work_of, true},
      {"avx512", avx512, avx512::forward, avx512::backward, avx512::work_of, false},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::forward, avx2::backward,
       avx2::work_of, false},
      {"baseline", true, baseline::forward, baseline::backward, baseline::work_of, false},
  };
#else
  const Variant variants[] = {{"baseline", true, baseline::forward, baseline::backward, baseline::work_of, false}};
#endif
  const Variant* from = variants;
  for (const Variant& v : variants)
    if (requested && std::strcmp(requested, v.name) == 0) from = &v;
  auto best = [&](bool bf16) {
    const Variant* v = from;
    while (!v->usable || (v->bf16_only && !bf16)) ++v;
    return *v;
  };
  std::vector<const char*> compiled;
  for (const Variant& v : variants) compiled.push_back(v.name);
  return {best(false), best(true), compiled};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}
const Variant& variant(DType dtype) { return dtype == DType::bf16 ? choice().bf16 : choice().all; }

// to = from (zero where absent), [D, N, columns], for the sequences without steps.
void pass(const Layer& layer, void* to, const void* from, int64_t columns) {
  const size_t row = columns * (layer.dtype == DType::f64 ? 8 : layer.dtype == DType::f32 ? 4 : 2);
  for (int64_t d = 0; to && d < layer.D; ++d)
    for (int64_t j = layer.active[0]; j < layer.N; ++j) {
      const size_t at = (d * layer.N + layer.order[j]) * row;
      if (from)
        std::memcpy(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, row);
      else
        std::memset(static_cast<char*>(to) + at, 0, row);
    }
}

// Multiply-adds of all steps of a direction, with some for reading the weights.
double multiply_adds(const Layer& layer) {
  return double(layer.N + 3) * layer.T * gates_of(layer.cell) * layer.H * (layer.I + layer.P);
}

// Runs the kernel with the threads that the call may use.
template <class Direction>
void run(void (*kernel)(const Direction&), const Direction& layer) {
  const Call call(multiply_adds(layer));
  const int threads = call.threads(layer.threads);
  if (threads == layer.threads) return kernel(layer);
  Direction used = layer;
  used.threads = threads;
  kernel(used);
}

}  // namespace

void forward(const Forward& layer) {
  run(variant(layer.dtype).forward, layer);
  if (layer.active[0] == layer.N) return;
  pass(layer, layer.h_n, layer.h0, layer.P);
  pass(layer, layer.c_n, layer.c0, layer.H);
}

void backward(const Backward& layer) {
  run(variant(layer.dtype).backward, layer);
  if (layer.active[0] == layer.N) return;
  pass(layer, layer.grad_h0, layer.grad_h_n, layer.P);
  pass(layer, layer.grad_c0, layer.grad_c_n, layer.H);
}
Work work_of(const Backward& layer, bool backward) { return variant(layer.dtype).work_of(layer, backward); }
const char* capability(DType dtype) { return variant(dtype).name; }
std::vector<const char*> capabilities() { return choice().compiled; }

}  // namespace cpu
}  // namespace lstmkern
