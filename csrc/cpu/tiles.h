// Products of bf16 on AMX's tile registers: sums of 16 rows by 16 columns, 16 words (32 values) of k at a time.
// Intel, Architecture Instruction Set Extensions, "Intel AMX": row i of the second operand holds the pair (2i, 2i+1)
// of every column, which is how panels of pairs are stored.

// Tile registers: sums in 0 to 3, rows of A in 4, the panel's in 5.
constexpr int kTileOfB = 5;

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Rows of a tile of sums and of a tile of A, as this thread has configured its tile registers; 0: not configured. A
// product takes as many cycles as a tile has rows.
inline __thread int tile_high = 0;

INLINE void configure_tiles(int high) {
  if (high == tile_high) return;
  TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = i == kTileOfB ? 16 : high;
  }
  asm volatile("" : : "r"(&config) : "memory");  // GCC assumes that _tile_loadconfig reads 8 bytes
  _tile_loadconfig(&config);
  tile_high = high;
}

// Releases the thread's tile registers at the end of its use.
struct TileScope {
  ~TileScope() {
    if (tile_high) _tile_release();
    tile_high = 0;
  }
};

// Prepares for tiles of `rows` rows or one less: two halves that may overlap, or one tile if that has enough rows.
INLINE void prepare_tiles(int rows) { configure_tiles(rows <= 16 ? rows : (rows + 1) / 2); }

// Sums of tile_high rows and, if RowTiles is 2, of as many again from row `lower` on, for ColumnTiles registers of
// columns at a time. With every 16 words it prefetches `lines` cache lines from `ahead` on; split as for kernel() in
// gemm.h. The fewer tiles are in use, the more resources the core has for the next loads: besides the sums there is one
// tile for rows and one for columns, loaded again for each product that needs another. When nothing else runs on the
// core this is as fast as keeping tiles for a second use (within 5 %), otherwise up to twice as fast
// (docs/benchmarks/findings.md).
template <int NV, int RowTiles, int ColumnTiles, int First = 0>
INLINE void tile_sums(int lower, const bf16* a, int64_t lda, const bf16* panel, int64_t K, float* sums,
                      const bf16* ahead, int lines, int64_t split) {
  constexpr int64_t ldb = NV * 64;  // bytes
  constexpr bool two = RowTiles > 1, right = ColumnTiles > 1 && First + 1 < NV;
  const bf16* const a_lower = reinterpret_cast<const bf16*>(reinterpret_cast<const char*>(a) + lower * lda);
  int64_t k = 0;
  for (int64_t end = split ? split : K;; end = K) {
    _tile_zero(0);
    if constexpr (two) _tile_zero(1);
    if constexpr (right) _tile_zero(2);
    if constexpr (two && right) _tile_zero(3);
    for (; k < end; k += 16) {
      for (int i = 0; i < lines; ++i, ahead += 32) __builtin_prefetch(ahead, 0, 2);
      const bf16* b = panel + (k * NV + First) * 32;
      _tile_loadd(5, b, ldb);
      _tile_loadd(4, a + k * 2, lda);
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (two) {
        _tile_loadd(4, a_lower + k * 2, lda);
        _tile_dpbf16ps(1, 4, 5);
      }
      if constexpr (right) {
        _tile_loadd(5, b + 32, ldb);
        if constexpr (two) {
          _tile_dpbf16ps(3, 4, 5);
          _tile_loadd(4, a + k * 2, lda);
        }
        _tile_dpbf16ps(2, 4, 5);
      }
    }
    float *const to = sums + (end < K ? kTile<float> : 0) + First * 16, *const to_lower = to + lower * NV * 16;
    _tile_stored(0, to, ldb);
    if constexpr (two) _tile_stored(1, to_lower, ldb);
    if constexpr (right) _tile_stored(2, to + 16, ldb);
    if constexpr (two && right) _tile_stored(3, to_lower + 16, ldb);
    if (end == K) break;
  }
  if constexpr (First + ColumnTiles < NV)
    tile_sums<NV, RowTiles, ColumnTiles, First + ColumnTiles>(lower, a, lda, panel, K, sums, ahead, lines, split);
}

// One row leaves tiles nearly empty; vectors of pairs read the same panels about as fast as tiles at their best, and up
// to 1.5 times as fast otherwise (docs/benchmarks/findings.md). Several chains of sums hide the latency of one.
template <int NV>
INLINE void row_sums(const bf16* a, const bf16* panel, int64_t K, float* sums, const bf16* ahead, int64_t split) {
  constexpr int chains = NV < 3 ? 4 : 2;
  int64_t k = 0;
  for (int64_t end = split ? split : K;; end = K) {
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
                         int64_t split) {
  switch (nv) {
    case 1: return row_sums<1>(a, panel, K, sums, ahead, split);
    case 2: return row_sums<2>(a, panel, K, sums, ahead, split);
    case 3: return row_sums<3>(a, panel, K, sums, ahead, split);
    default: return row_sums<4>(a, panel, K, sums, ahead, split);
  }
}

// Two tiles of rows go through the panel column by column as long as they stay in the first-level cache.
template <int NV>
INLINE void multiply_tiles(int rows, const bf16* a, int64_t lda, const bf16* panel, int64_t K, float* sums,
                           const bf16* ahead, int64_t share, int64_t split) {
  const int lower = rows - tile_high;
  const bool one_by_one = lower && K <= 128;
  const int64_t times = K / 16 * (one_by_one ? NV : (NV + 1) / 2);
  const int lines = static_cast<int>((share / 32 + times - 1) / times);
  if (!lower) return tile_sums<NV, 1, 2>(lower, a, lda, panel, K, sums, ahead, lines, split);
  if (one_by_one) return tile_sums<NV, 2, 1>(lower, a, lda, panel, K, sums, ahead, lines, split);
  tile_sums<NV, 2, 2>(lower, a, lda, panel, K, sums, ahead, lines, split);
}

// As multiply() in gemm.h, after prepare_tiles().
INLINE void multiply_tiles(int rows, int nv, const bf16* const* a, const bf16* panel, int64_t K, float* sums,
                           const bf16* ahead, int64_t share, int64_t split) {
  const int64_t lda = rows > 1 ? (a[1] - a[0]) * int64_t(sizeof(bf16)) : 0;
  switch (nv) {
    case 1: return multiply_tiles<1>(rows, a[0], lda, panel, K, sums, ahead, share, split);
    case 2: return multiply_tiles<2>(rows, a[0], lda, panel, K, sums, ahead, share, split);
    case 3: return multiply_tiles<3>(rows, a[0], lda, panel, K, sums, ahead, share, split);
    default: return multiply_tiles<4>(rows, a[0], lda, panel, K, sums, ahead, share, split);
  }
}
