// Loops that only multiply and add, or only read memory, for the benchmarks' roofline. peak.cpp includes this file once
// per instruction set, in its namespace and under its target pragma. VECTOR_BYTES is the width of a register. To
// measure another unit, add an entry to kRates.

template <class C>
struct Register {
  typedef C type __attribute__((vector_size(VECTOR_BYTES), may_alias));
};
template <class C>
using Vec = typename Register<C>::type;
template <class C>
constexpr int width = VECTOR_BYTES / sizeof(C);

// Twelve independent chains hide the latency of two units of four to six cycles each, and fit into sixteen registers.
constexpr int kChains = 12;
constexpr int kResults = 2048;  // offset of the results in the memory (at least 4096 bytes), past what is read

template <class C>
double multiply_add(int64_t rounds, char* memory, int64_t) {
  C* values = reinterpret_cast<C*>(memory);
  // Loaded from memory, so that the compiler cannot compute the result. x f + f with f < 1 neither overflows nor
  // vanishes.
  const Vec<C> factor = (values[0] - Vec<C>{}) * C(0.5), term = factor;
  Vec<C> chain[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) chain[i] = values[i] - Vec<C>{};
  for (int64_t k = 0; k < rounds; ++k)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) *reinterpret_cast<Vec<C>*>(values + kResults / sizeof(C) + i * width<C>) = chain[i];
  return 2.0 * kChains * width<C> * rounds;
}

template <class C>
double read_memory(int64_t rounds, char* memory, int64_t bytes) {
  const C* values = reinterpret_cast<const C*>(memory);
  const int64_t block = kChains * width<C>, blocks = bytes / sizeof(C) / block;
  Vec<C> chain[kChains] = {};
  for (int64_t k = 0; k < rounds; ++k)
    for (int64_t b = 0; b < blocks; ++b)
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) chain[i] += *reinterpret_cast<const Vec<C>*>(values + b * block + i * width<C>);
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) chain[0] += chain[i];
  *reinterpret_cast<Vec<C>*>(memory) = chain[0] * C(0) + C(1);
  return static_cast<double>(rounds) * blocks * block * sizeof(C);
}

inline bool always() { return true; }

#if VECTOR_BYTES == 64
#pragma GCC push_options
#pragma GCC target("avx512bf16")
double dot_bf16(int64_t rounds, char* memory, int64_t) {
  float* values = reinterpret_cast<float*>(memory);
  const __m512bh a = (__m512bh)_mm512_loadu_ps(values), b = (__m512bh)_mm512_set1_epi32(0x80003f80);  // (1, -0)
  __m512 chain[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) chain[i] = _mm512_loadu_ps(values + i * 16);
  for (int64_t k = 0; k < rounds; ++k)
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], a, b);
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) _mm512_storeu_ps(values + kResults / 4 + i * 16, chain[i]);
  return 4.0 * kChains * 16 * rounds;
}
#pragma GCC pop_options
inline bool has_dot_bf16() { return __builtin_cpu_supports("avx512bf16"); }
#endif

// Products of 16 x 32 by 32 x 16 bf16 with 16 x 16 fp32 sums. A process must request the tile registers from Linux.
#if VECTOR_BYTES == 64 && defined(__linux__)
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")
double dot_tiles(int64_t rounds, char* memory, int64_t) {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  asm volatile("" : : "r"(&shape) : "memory");  // the intrinsic declares only 8 of the 64 bytes as read
  _tile_loadconfig(&shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, memory, 64);
  _tile_loadd(5, memory, 64);
  _tile_loadd(6, memory, 64);
  _tile_loadd(7, memory, 64);
  for (int64_t k = 0; k < rounds; ++k) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, memory + kResults, 64);
  _tile_release();
  return 4.0 * (2 * 16 * 16 * 32) * rounds;
}
#pragma GCC pop_options
inline bool has_tiles() { return __builtin_cpu_supports("amx-bf16") && tiles_granted(); }
#endif

// The loops by the name of their rate: floating point operations (bf16, amx: bf16 with fp32 sums), or bytes read.
inline const Rate* rates() {
  static const Rate kRates[] = {
      {"fp32", always, multiply_add<float>}, {"fp64", always, multiply_add<double>},
#if VECTOR_BYTES == 64
      {"bf16", has_dot_bf16, dot_bf16},
#endif
#if VECTOR_BYTES == 64 && defined(__linux__)
      {"amx", has_tiles, dot_tiles},
#endif
      {"read", always, read_memory<float>},  {nullptr, nullptr, nullptr},
  };
  return kRates;
}
