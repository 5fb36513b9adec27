// Registers of one instruction set, written with the compiler's vector types.
//
// Every translation unit of an instruction set (avx512/*.cpp, avx2/*.cpp, ...) includes this file inside the namespace
// of that set and under its target pragma. LSTMKERN_VECTOR_BYTES is the width of a register. LSTMKERN_BF16 is 1 if
// there are instructions that multiply pairs of bf16, 2 if AMX's tiles do so too. Code here must not call a standard
// library function: the linker could choose the copy compiled for a wider target for the whole program.

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of a lambda

template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(LSTMKERN_VECTOR_BYTES)));
  typedef float loose __attribute__((vector_size(LSTMKERN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(LSTMKERN_VECTOR_BYTES)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(LSTMKERN_VECTOR_BYTES)));
  typedef double loose __attribute__((vector_size(LSTMKERN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(LSTMKERN_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Register<T>::type;
template <class T>
constexpr int width = LSTMKERN_VECTOR_BYTES / sizeof(T);

// The lower half of a register. Some AVX-512 machines compute with it in half the time, and none takes longer.
template <class T>
struct ShortRegister;
template <>
struct ShortRegister<float> {
  typedef float type __attribute__((vector_size(LSTMKERN_VECTOR_BYTES / 2)));
  typedef float loose __attribute__((vector_size(LSTMKERN_VECTOR_BYTES / 2), aligned(4), may_alias));
};
template <>
struct ShortRegister<double> {
  typedef double type __attribute__((vector_size(LSTMKERN_VECTOR_BYTES / 2)));
  typedef double loose __attribute__((vector_size(LSTMKERN_VECTOR_BYTES / 2), aligned(8), may_alias));
};
template <class T>
using ShortVec = typename ShortRegister<T>::type;

// 16-bit storage types: only loaded into and stored from float registers.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

INLINE float value(float x) { return x; }
INLINE double value(double x) { return x; }
INLINE float value(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

template <class C>
INLINE Vec<C> load(const C* p) {
  return *reinterpret_cast<const typename Register<C>::loose*>(p);
}
template <class C>
INLINE void store(C* p, Vec<C> v) {
  *reinterpret_cast<typename Register<C>::loose*>(p) = v;
}
template <class C>
INLINE Vec<C> broadcast(C x) {
  return x - Vec<C>{};
}
template <class C>
INLINE ShortVec<C> load_short(const C* p) {
  return *reinterpret_cast<const typename ShortRegister<C>::loose*>(p);
}
template <class C>
INLINE void store_short(C* p, ShortVec<C> v) {
  *reinterpret_cast<typename ShortRegister<C>::loose*>(p) = v;
}
template <class C>
INLINE ShortVec<C> lower_half(Vec<C> v) {
  ShortVec<C> half;
  __builtin_memcpy(&half, &v, sizeof half);
  return half;
}

typedef uint16_t Halves __attribute__((vector_size(LSTMKERN_VECTOR_BYTES / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(LSTMKERN_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(LSTMKERN_VECTOR_BYTES)));

INLINE Vec<float> widen(Halves h, bf16) { return (Vec<float>)(__builtin_convertvector(h, Words) << 16); }
INLINE Halves narrow(Vec<float> v, bf16) {  // round to nearest, ties to even; NaN stays NaN
#if LSTMKERN_BF16
  return (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
  Words bits = (Words)v;
  Words rounded = (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16;
  Words kept = (bits >> 16) | 0x40;
  return __builtin_convertvector((Words)(v == v ? rounded : kept), Halves);
#endif
}

#if LSTMKERN_VECTOR_BYTES == 64
INLINE Vec<float> widen(Halves h, f16) { return (Vec<float>)_mm512_cvtph_ps((__m256i)h); }
INLINE Halves narrow(Vec<float> v, f16) { return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif LSTMKERN_VECTOR_BYTES == 32
INLINE Vec<float> widen(Halves h, f16) { return (Vec<float>)_mm256_cvtph_ps((__m128i)h); }
INLINE Halves narrow(Vec<float> v, f16) { return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
// Portable, and exact where subnormals of fp32 are flushed (flush.h).
INLINE Vec<float> widen(Halves h, f16) {
  Words w = __builtin_convertvector(h, Words);
  Words sign = (w & 0x8000) << 16, rest = (w & 0x7fff) << 13;
  Words normal = rest + (112 << 23), special = rest | 0x7f800000;     // special: inf and NaN
  Words tiny = (Words)((Vec<float>)(rest + (113 << 23)) - 0x1p-14f);  // fp16's subnormals: 2^-14 (1 + m) - 2^-14
  Words bits = (Words)(rest < (uint32_t)(0x400 << 13)) ? tiny : normal;
  bits = (Words)(rest >= (uint32_t)(0x7c00 << 13)) ? special : bits;
  return (Vec<float>)(bits | sign);
}
INLINE Halves narrow(Vec<float> v, f16) {
  Words bits = (Words)v, sign = bits & 0x80000000, rest = bits ^ sign;
  Words rounded = (rest + (((rest >> 13) & 1) + 0xfff)) >> 13;
  Words normal = rounded - (112 << 10);
  Words tiny = (Words)((Vec<float>)rest + 0x1p-1f) - 0x3f000000;  // the addition rounds to multiples of 2^-24
  Words half = (Words)(rest < (uint32_t)0x38800000) ? tiny : normal;
  half = (Words)(rest >= (uint32_t)0x477ff000) ? (Words{} + 0x7c00) : half;
  half = (Words)(rest > (uint32_t)0x7f800000) ? (Words{} + 0x7e00) : half;
  return __builtin_convertvector(half | (sign >> 16), Halves);
}
#endif

template <class S>
INLINE Vec<float> load_half(const S* p) {
  return widen(*reinterpret_cast<const LooseHalves*>(p), S{});
}
INLINE Vec<float> load(const bf16* p) { return load_half(p); }
INLINE Vec<float> load(const f16* p) { return load_half(p); }
INLINE void store(bf16* p, Vec<float> v) { *reinterpret_cast<LooseHalves*>(p) = narrow(v, bf16{}); }
INLINE void store(f16* p, Vec<float> v) { *reinterpret_cast<LooseHalves*>(p) = narrow(v, f16{}); }

// Load and store the first n lanes of a register, because a row of a tensor may end anywhere. This is rare. It is done
// with masks if the instruction set has masked loads that do not access the memory past the end.
template <class S>
constexpr int lanes = width<float> / (sizeof(S) == 8 ? 2 : 1);

template <class S>
__attribute__((noinline)) auto load_end(const S* p, int64_t n) -> decltype(load(p)) {
  S part[lanes<S>] = {};
  for (int64_t k = 0; k < n; ++k) part[k] = p[k];
  return load(part);
}
template <class S, class V>
__attribute__((noinline)) void store_end(S* p, V v, int64_t n) {
  S part[lanes<S>];
  store(part, v);
  for (int64_t k = 0; k < n; ++k) p[k] = part[k];
}
#if LSTMKERN_VECTOR_BYTES == 64
INLINE uint32_t first_lanes(int64_t n) { return n > 0 ? (1u << n) - 1 : 0; }  // n < 32
INLINE Vec<float> load_end(const float* p, int64_t n) { return (Vec<float>)_mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE Vec<double> load_end(const double* p, int64_t n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(first_lanes(n), p);
}
INLINE Vec<float> load_end(const bf16* p, int64_t n) {
  return widen((Halves)_mm256_maskz_loadu_epi16(first_lanes(n), p), bf16{});
}
INLINE Vec<float> load_end(const f16* p, int64_t n) {
  return widen((Halves)_mm256_maskz_loadu_epi16(first_lanes(n), p), f16{});
}
INLINE void store_end(float* p, Vec<float> v, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)v); }
INLINE void store_end(double* p, Vec<double> v, int64_t n) { _mm512_mask_storeu_pd(p, first_lanes(n), (__m512d)v); }
INLINE void store_end(bf16* p, Vec<float> v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)narrow(v, bf16{}));
}
INLINE void store_end(f16* p, Vec<float> v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)narrow(v, f16{}));
}
#elif LSTMKERN_VECTOR_BYTES == 32
INLINE __m256i first_lanes(int64_t n) {
  return (__m256i)(Register<float>::bits{0, 1, 2, 3, 4, 5, 6, 7} < static_cast<int32_t>(n));
}
INLINE __m256i first_pairs(int64_t n) { return (__m256i)(Register<double>::bits{0, 1, 2, 3} < n); }
INLINE Vec<float> load_end(const float* p, int64_t n) { return (Vec<float>)_mm256_maskload_ps(p, first_lanes(n)); }
INLINE Vec<double> load_end(const double* p, int64_t n) { return (Vec<double>)_mm256_maskload_pd(p, first_pairs(n)); }
INLINE void store_end(float* p, Vec<float> v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), (__m256)v); }
INLINE void store_end(double* p, Vec<double> v, int64_t n) { _mm256_maskstore_pd(p, first_pairs(n), (__m256d)v); }
#endif
template <class S>
INLINE auto load(const S* p, int64_t n) -> decltype(load(p)) {
  return __builtin_expect(n >= lanes<S>, 1) ? load(p) : load_end(p, n);
}
template <class S, class V>
INLINE void store(S* p, V v, int64_t n) {
  if (__builtin_expect(n >= lanes<S>, 1))
    store(p, v);
  else
    store_end(p, v, n);
}

// Whether the product of `rows` rows of n values, ld apart, with zeros is zero: no value is infinite or NaN.
template <class C, class S>
bool all_finite(const S* values, int64_t rows, int64_t ld, int64_t n) {
  constexpr int W = width<C>;
  Vec<C> sums[4] = {};  // of zeros, or NaN
  for (int64_t row = 0; row < rows; ++row, values += ld) {
    int64_t k = 0;
    for (; k + 4 * W <= n; k += 4 * W)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[i] += load(values + k + i * W) * Vec<C>{};
    for (; k < n; k += W) sums[0] += load(values + k, n - k) * Vec<C>{};
  }
  const typename Register<C>::bits other = sums[0] + sums[1] + (sums[2] + sums[3]) != Vec<C>{};
  bool any = false;
  for (int l = 0; l < W; ++l) any |= other[l] != 0;
  return !any;
}

template <class C>
using Bits = typename Register<C>::bits;

#if LSTMKERN_BF16
// bf16 as bits. A word has two values adjacent along k, or the values of two rows at one lane.
INLINE Halves load_bits(const bf16* p) { return *reinterpret_cast<const LooseHalves*>(p); }
INLINE Halves load_bits(const bf16* p, int64_t n) {
  return (Halves)_mm256_maskz_loadu_epi16(n >= 16 ? 0xffff : (1 << (n > 0 ? n : 0)) - 1, p);
}
INLINE Words load_pairs(const bf16* p, int64_t n) {
  return (Words)_mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, p);
}
INLINE Words interleave(Halves low, Halves high) {
  return __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
}
INLINE void store_words(bf16* p, Words v) {
  typedef uint32_t Loose __attribute__((vector_size(LSTMKERN_VECTOR_BYTES), aligned(2), may_alias));
  *reinterpret_cast<Loose*>(p) = v;
}
#endif
