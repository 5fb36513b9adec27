// Elementary functions of one instruction set: the logistic function (sigmoid) and tanh. Included after simd.h.

// exp(y) for y = Sign * x as scale * (1 + p): y = n ln2 + r, |r| <= ln2 / 2, scale = 2^n, p = expm1(r). p has a small
// relative error, so that neither exp nor expm1 loses digits. Polynomials: for float a fit by reweighted least squares
// with a relative error of 1.3e-8 (a ninth of an ulp); for double the Taylor series, whose first omitted term is below
// 2^-57 of the sum.
template <class C>
struct Exponential {
  Vec<C> scale, p;
};

template <int Sign>
INLINE Exponential<float> exponential(Vec<float> x) {
  // After this is added, the low bits hold the rounded integer with the bias of an exponent.
  const float magic = 0x1.8p23f + 127;
  Vec<float> shifted = x * (Sign * 0x1.715476p0f) + magic;
  Vec<float> n = shifted - magic;
  Vec<float> r = n * -0x1.62e4p-1f + (Sign < 0 ? -x : x);
  r = n * -0x1.7f7d1cp-20f + r;
  Vec<float> q = r * 0x1.6bebfep-10f + 0x1.1227b0p-7f;
  q = q * r + 0x1.555674p-5f;
  q = q * r + 0x1.5554b0p-3f;
  q = q * r + 0x1.fffffep-2f;
  Vec<float> p = q * (r * r) + r;
  return {(Vec<float>)((Bits<float>)shifted << 23), p};
}

template <int Sign>
INLINE Exponential<double> exponential(Vec<double> x) {
  const double magic = 0x1.8p52 + 1023;
  Vec<double> shifted = x * (Sign * 0x1.71547652b82fep0) + magic;
  Vec<double> n = shifted - magic;
  Vec<double> r = n * -0x1.62e42fefap-1 + (Sign < 0 ? -x : x);
  r = n * -0x1.cf79abc9e3b39p-40 + r;
  Vec<double> q = r * (1.0 / 6227020800) + 1.0 / 479001600;
  q = q * r + 1.0 / 39916800;
  q = q * r + 1.0 / 3628800;
  q = q * r + 1.0 / 362880;
  q = q * r + 1.0 / 40320;
  q = q * r + 1.0 / 5040;
  q = q * r + 1.0 / 720;
  q = q * r + 1.0 / 120;
  q = q * r + 1.0 / 24;
  q = q * r + 1.0 / 6;
  q = q * r + 0.5;
  Vec<double> p = q * (r * r) + r;
  return {(Vec<double>)((Bits<double>)shifted << 52), p};
}

// For larger arguments, scale or 1 / scale would not be a normal number. NaN passes.
template <class C>
constexpr C kLimit = sizeof(C) == 4 ? C(87.3) : C(708);

INLINE Vec<double> at_least(Vec<double> x, double low) { return x < low ? broadcast(low) : x; }
INLINE Vec<double> at_most(Vec<double> x, double top) { return x > top ? broadcast(top) : x; }
INLINE Vec<double> quotient(Vec<double> a, Vec<double> b) { return a / b; }
#if LSTMKERN_VECTOR_BYTES == 64
INLINE Vec<float> at_least(Vec<float> x, float low) {
  return (Vec<float>)_mm512_max_ps((__m512)broadcast(low), (__m512)x);
}
INLINE Vec<float> at_most(Vec<float> x, float top) {
  return (Vec<float>)_mm512_min_ps((__m512)broadcast(top), (__m512)x);
}
// a / b. A division occupies the divider of an Intel core for 16 cycles. The 14 bits of rcp14 and one correction of the
// quotient take four, and the error is about that of the last rounding.
INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) {
  const Vec<float> y = (Vec<float>)_mm512_rcp14_ps((__m512)b), q = a * y;
  return q + (a - q * b) * y;
}
#elif LSTMKERN_VECTOR_BYTES == 32
INLINE Vec<float> at_least(Vec<float> x, float low) {
  return (Vec<float>)_mm256_max_ps((__m256)broadcast(low), (__m256)x);
}
INLINE Vec<float> at_most(Vec<float> x, float top) {
  return (Vec<float>)_mm256_min_ps((__m256)broadcast(top), (__m256)x);
}
INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) { return a / b; }
#else
INLINE Vec<float> at_least(Vec<float> x, float low) { return x < low ? broadcast(low) : x; }
INLINE Vec<float> at_most(Vec<float> x, float top) { return x > top ? broadcast(top) : x; }
INLINE Vec<float> quotient(Vec<float> a, Vec<float> b) { return a / b; }
#endif

// sigmoid(x) = 1 / (1 + exp(-x)). Below the lower limit, where the quotient is undefined, it is 0: a closed gate times
// inf is NaN, not inf.
template <class C>
INLINE Vec<C> sigmoid_of(Vec<C> x) {
  Exponential<C> e = exponential<-1>(at_most(x, kLimit<C>));
  const Vec<C> s = quotient(broadcast(C(1)), e.scale * e.p + (e.scale + 1));
  return x < -kLimit<C> ? Vec<C>{} : s;
}

// With e = exp(-2|x|): tanh(|x|) = (1 - e) / (1 + e), with 1 - e from expm1 so that it keeps its digits near zero; or
// 1 - 2e / (1 + e), where that is more accurate (in a gradient, 1 - tanh(x)^2 cancels and amplifies every ulp).
template <class C>
INLINE Vec<C> tanh_of(Vec<C> x) {
  const Bits<C> minus = (Bits<C>)broadcast(C(-0.0));
  const Vec<C> twice = at_least((Vec<C>)((Bits<C>)(x * 2) | minus), -kLimit<C>);
  const Exponential<C> exp = exponential<1>(twice);
  const Vec<C> e = exp.scale * exp.p + exp.scale;
  const auto far = twice <= C(-1.5);
  const Vec<C> numerator = far ? -2 * e : 1 - exp.scale - exp.scale * exp.p;
  Vec<C> t = quotient(numerator, e + 1);
  t = far ? t + 1 : t;  // not negative
  return (Vec<C>)((Bits<C>)t ^ ((Bits<C>)x & minus));
}

INLINE Vec<float> sigmoid(Vec<float> x) { return sigmoid_of<float>(x); }
INLINE Vec<double> sigmoid(Vec<double> x) { return sigmoid_of<double>(x); }
#if LSTMKERN_VECTOR_BYTES == 64
#include "tanh_table.h"
// A polynomial in a = |x|, whose coefficients and center are looked up by a's exponent and two bits of its mantissa
// (tanh_table.py). The error is at most 1.08 ulp, tried for every float. From 10 on, tanh is exactly 1 and its
// derivative exactly 0.
INLINE Vec<float> tanh(Vec<float> x) {
  const Bits<float> minus = (Bits<float>)broadcast(-0.0f);
  const Vec<float> a = at_most((Vec<float>)((Bits<float>)x & ~minus), 15.9f);
  const __m512i interval = _mm512_srli_epi32((__m512i)at_least(a, 0.12f), 21);  // its low five bits
  auto look_up = [&](int row) INLINED {
    return (Vec<float>)_mm512_permutex2var_ps(_mm512_load_ps(kTanh[row]), interval, _mm512_load_ps(kTanh[row] + 16));
  };
  const Vec<float> d = a - look_up(0);
  Vec<float> t = look_up(6);
#pragma GCC unroll 5
  for (int row = 5; row > 0; --row) t = t * d + look_up(row);
  return (Vec<float>)((Bits<float>)t | ((Bits<float>)x & minus));
}
#else
INLINE Vec<float> tanh(Vec<float> x) { return tanh_of<float>(x); }
#endif
INLINE Vec<double> tanh(Vec<double> x) { return tanh_of<double>(x); }
