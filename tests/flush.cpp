// Checks csrc/cpu/flush.h and the portable conversions of fp16 on the processor that it is compiled for. Exits with the
// number of the first check that fails. Compiled and run by test_subnormal.py.
#include "../csrc/cpu/flush.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../csrc/cpu/baseline/target.h"

namespace {
#include "../csrc/cpu/simd.h"

using lstmkern::cpu::FlushSubnormals;

volatile float single = 1e-40f, one = 1;
volatile double twice = 1e-310, unit = 1;

bool flushes() { return single * one == 0 && twice * unit == 0; }
bool keeps() { return single * one != 0 && twice * unit != 0; }

// Whether every fp16 becomes the fp32 that the standard defines, and the same fp16 again.
bool converts() {
  for (uint32_t bits = 0; bits < 0x10000; bits += width<float>) {
    f16 from[width<float>], back[width<float>];
    float to[width<float>];
    for (int l = 0; l < width<float>; ++l) from[l].bits = static_cast<uint16_t>(bits + l);
    store(to, load(from));
    store(back, load(to));
    for (int l = 0; l < width<float>; ++l) {
      const int exponent = (from[l].bits >> 10) & 31, mantissa = from[l].bits & 1023;
      const bool nan = exponent == 31 && mantissa, minus = from[l].bits >> 15;
      if (nan ? !std::isnan(to[l]) : back[l].bits != from[l].bits) return false;
      if (exponent == 31) continue;
      const double value = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
      if (to[l] != (minus ? -value : value) || std::signbit(to[l]) != minus) return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  if (!keeps() || !converts()) return 1;
  {
    const FlushSubnormals outer;
    if (!flushes() || !converts()) return 2;
    {
      const FlushSubnormals inner;
      if (!flushes()) return 3;
    }
    if (!flushes()) return 4;  // as before `inner`
  }
  if (!keeps()) return 5;
  try {
    const FlushSubnormals scope;
    if (!flushes()) return 6;
    throw std::runtime_error("from a kernel");
  } catch (const std::runtime_error&) {
  }
  return keeps() ? 0 : 7;
}
