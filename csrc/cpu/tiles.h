// Products of bf16 on AMX's tile registers: sums of 16 rows by 16 columns, 16 words (32 values) of k at a time.
// Intel, Architecture Instruction Set Extensions, "Intel AMX": row i of the second operand holds the pair (2i, 2i+1)
// of every column, which is just how panels of pairs lie.

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tile registers belong to a thread that has said how it uses them.
struct TileScope {
  TileScope() {
    TileConfig config{};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
};

// Sums of 16 * Down rows, Across registers of columns at a time; turn as for kernel() in gemm.h. The fewer tiles are in
// use, the more the core has left for what is loaded next: beside the sums one for rows and one for columns, loaded
// anew for each product that needs another. On a core of its own that is as fast as keeping tiles for a second use (to
// a twentieth), otherwise up to twice as fast (benchmarks/README.md).
template <int NV, int Down, int Across, int First = 0>
INLINE void tile_sums(const bf16* a, int64_t lda, const bf16* panel, int64_t K, float* sums, const bf16* ahead,
                      int64_t turn) {
  constexpr int64_t ldb = NV * 64;  // bytes
  constexpr bool lower = Down > 1, right = Across > 1 && First + 1 < NV;
  const bf16* const a_lower = reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(a) + 16 * lda);
  int64_t k = 0;
  for (int64_t end = turn ? turn : K;; end = K) {
    _tile_zero(0);
    if constexpr (lower) _tile_zero(1);
    if constexpr (right) _tile_zero(2);
    if constexpr (lower && right) _tile_zero(3);
    for (; k < end; k += 16) {
      if (First == 0)
        for (int i = 0; i < 16; ++i) __builtin_prefetch(ahead + (k + i) * 32, 0, 2);
      const bf16* b = panel + (k * NV + First) * 32;
      _tile_loadd(5, b, ldb);
      _tile_loadd(4, a + k * 2, lda);
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (lower) {
        _tile_loadd(4, a_lower + k * 2, lda);
        _tile_dpbf16ps(1, 4, 5);
      }
      if constexpr (right) {
        _tile_loadd(5, b + 32, ldb);
        if constexpr (lower) {
          _tile_dpbf16ps(3, 4, 5);
          _tile_loadd(4, a + k * 2, lda);
        }
        _tile_dpbf16ps(2, 4, 5);
      }
    }
    float *const to = sums + (end < K ? kTile<float> : 0) + First * 16, *const to_lower = to + 16 * NV * 16;
    _tile_stored(0, to, ldb);
    if constexpr (lower) _tile_stored(1, to_lower, ldb);
    if constexpr (right) _tile_stored(2, to + 16, ldb);
    if constexpr (lower && right) _tile_stored(3, to_lower + 16, ldb);
    if (end == K) break;
  }
  if constexpr (First + Across < NV) tile_sums<NV, Down, Across, First + Across>(a, lda, panel, K, sums, ahead, turn);
}

// One row leaves tiles nearly empty; vectors of pairs read the same panels about as fast as tiles at their best, and up
// to half as fast again otherwise (benchmarks/README.md). Registers that wait for their own last sum would be too few.
template <int NV>
INLINE void row_sums(const bf16* a, const bf16* panel, int64_t K, float* sums, const bf16* ahead, int64_t turn) {
  constexpr int chains = NV < 3 ? 4 : 2;
  int64_t k = 0;
  for (int64_t end = turn ? turn : K;; end = K) {
    __m512 sum[chains][NV] = {};
    for (; k < end; k += chains) {
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) {
        int pair;
        __builtin_memcpy(&pair, a + (k + c) * 2, 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        __builtin_prefetch(ahead + (k + c) * 32, 0, 2);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          const bf16* b = panel + ((k + c) * NV + v) * 32;
          __builtin_prefetch(b + 12 * NV * 32);
          sum[c][v] = _mm512_dpbf16_ps(sum[c][v], x, (__m512bh)_mm512_loadu_si512(b));
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      for (int c = 1; c < chains; ++c) sum[0][v] += sum[c][v];
      _mm512_storeu_ps(sums + (end < K ? kTile<float> : 0) + v * 16, sum[0][v]);
    }
    if (end == K) return;
  }
}

INLINE void multiply_row(int nv, const bf16* a, const bf16* panel, int64_t K, float* sums, const bf16* ahead,
                         int64_t turn) {
  switch (nv) {
    case 1: return row_sums<1>(a, panel, K, sums, ahead, turn);
    case 2: return row_sums<2>(a, panel, K, sums, ahead, turn);
    case 3: return row_sums<3>(a, panel, K, sums, ahead, turn);
    default: return row_sums<4>(a, panel, K, sums, ahead, turn);
  }
}

// 32 rows go through the panel column by column as long as they stay in the first-level cache.
template <int NV>
INLINE void multiply_tiles(int rows, const bf16* a, int64_t lda, const bf16* panel, int64_t K, float* sums,
                           const bf16* ahead, int64_t turn) {
  if (rows <= 16) return tile_sums<NV, 1, 2>(a, lda, panel, K, sums, ahead, turn);
  if (K <= 128) return tile_sums<NV, 2, 1>(a, lda, panel, K, sums, ahead, turn);
  tile_sums<NV, 2, 2>(a, lda, panel, K, sums, ahead, turn);
}

// As multiply() in gemm.h. All 16 or 32 rows are computed, whatever `rows` says.
INLINE void multiply_tiles(int rows, int nv, const bf16* const* a, const bf16* panel, int64_t K, float* sums,
                           const bf16* ahead, int64_t turn) {
  const int64_t lda = rows > 1 ? (a[1] - a[0]) * int64_t(sizeof(bf16)) : 0;
  switch (nv) {
    case 1: return multiply_tiles<1>(rows, a[0], lda, panel, K, sums, ahead, turn);
    case 2: return multiply_tiles<2>(rows, a[0], lda, panel, K, sums, ahead, turn);
    case 3: return multiply_tiles<3>(rows, a[0], lda, panel, K, sums, ahead, turn);
    default: return multiply_tiles<4>(rows, a[0], lda, panel, K, sums, ahead, turn);
  }
}
