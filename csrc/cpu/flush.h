// Subnormal numbers count as zero while a thread runs a kernel.
//
// Arithmetic on numbers below the smallest normal one (1.2e-38 in fp32, 2.2e-308 in fp64) takes a hundred cycles or
// more on many processors. They come from inputs that fade out, states that decay and gradients that vanish.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace lstmkern {
namespace cpu {

// While an object of this type lives, its thread reads subnormal operands as zero and writes zero for subnormal
// results. Afterwards the thread's control register has the value that it had before. On processors other than x86 and
// 64-bit ARM it does nothing. fp16's subnormals are normal numbers in fp32, and conversions stay exact: VCVTPH2PS
// ignores DAZ (Intel, Software Developer's Manual), and the portable conversion computes on normal numbers (simd.h).
class FlushSubnormals {
 public:
  FlushSubnormals() : before_(read()) { write(before_ | kFlush); }
  ~FlushSubnormals() { write(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__SSE__)
  using Control = unsigned;
  static constexpr Control kFlush = 1 << 15 | 1 << 6;  // MXCSR: results (FTZ), operands (DAZ)
  static Control read() { return _mm_getcsr(); }
  static void write(Control value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
  using Control = uint64_t;
  static constexpr Control kFlush = 1 << 24;  // FPCR.FZ: operands and results of fp32 and fp64
  static Control read() {
    Control value;
    asm volatile("mrs %0, fpcr" : "=r"(value) : : "memory");
    return value;
  }
  static void write(Control value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
#else
  using Control = int;
  static constexpr Control kFlush = 0;
  static Control read() { return 0; }
  static void write(Control) {}
#endif
  const Control before_;
};

}  // namespace cpu
}  // namespace lstmkern
