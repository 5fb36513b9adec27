// Picks the kernel variants for this machine, once. LSTMKERN_CPU_CAPABILITY lowers the choice.
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "variant.h"

namespace lstmkern {
namespace cpu {
namespace {

struct Variant {
  const char* name;
  bool usable;
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
  bool bf16_only;
};

#if defined(__x86_64__)
// The tile registers are large, so Linux wants to be asked before a process uses them.
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
};

// The best variant that may be used, among those from the wished one (or the first) on.
Choice choose() {
  const char* wish = std::getenv("LSTMKERN_CPU_CAPABILITY");
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
  // Intel's cores multiply pairs at half the rate of single values (Sapphire Rapids: 0.7 of the speed), so there they
  // are for those who ask.
  const bool fast_pairs = pairs && (!__builtin_cpu_is("intel") || (wish && std::strcmp(wish, "avx512_bf16") == 0));
  const Variant variants[] = {
      {"amx", pairs && amx_granted(), amx::forward, amx::backward, true},
      {"avx512_bf16", fast_pairs, avx512_bf16::forward, avx512_bf16::backward, true},
      {"avx512", avx512, avx512::forward, avx512::backward, false},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2::forward, avx2::backward, false},
      {"baseline", true, baseline::forward, baseline::backward, false},
  };
#else
  const Variant variants[] = {{"baseline", true, baseline::forward, baseline::backward, false}};
#endif
  const Variant* from = variants;
  for (const Variant& v : variants)
    if (wish && std::strcmp(wish, v.name) == 0) from = &v;
  auto best = [&](bool bf16) {
    const Variant* v = from;
    while (!v->usable || (v->bf16_only && !bf16)) ++v;
    return *v;
  };
  return {best(false), best(true)};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}
const Variant& variant(DType dtype) { return dtype == DType::bf16 ? choice().bf16 : choice().all; }

}  // namespace

void forward(const Forward& layer) { variant(layer.dtype).forward(layer); }
void backward(const Backward& layer) { variant(layer.dtype).backward(layer); }
const char* capability(DType dtype) { return variant(dtype).name; }

}  // namespace cpu
}  // namespace lstmkern
