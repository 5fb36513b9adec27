// Picks the kernel variant for this machine, once. LSTMKERN_CPU_CAPABILITY=baseline|avx2|avx512 lowers it.
#include <cstdlib>
#include <cstring>

#include "variant.h"

namespace lstmkern {
namespace cpu {
namespace {

struct Variant {
  const char* name;
  void (*forward)(const Forward&);
  void (*backward)(const Backward&);
};

Variant choose() {
  const char* wish = std::getenv("LSTMKERN_CPU_CAPABILITY");
  auto allowed = [&](const char* name) { return !wish || !*wish || std::strcmp(wish, name) == 0; };
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx512 && allowed("avx512")) return {"avx512", avx512::forward, avx512::backward};
  if (avx2 && (allowed("avx2") || allowed("avx512"))) return {"avx2", avx2::forward, avx2::backward};
#endif
  return {"baseline", baseline::forward, baseline::backward};
}

const Variant& variant() {
  static const Variant chosen = choose();
  return chosen;
}

}  // namespace

void forward(const Forward& layer) { variant().forward(layer); }
void backward(const Backward& layer) { variant().backward(layer); }
const char* capability() { return variant().name; }

}  // namespace cpu
}  // namespace lstmkern
