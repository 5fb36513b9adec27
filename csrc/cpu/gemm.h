// GEMM on packed panels: the microkernel behind every matrix product of the library.
//
// Operands are made of words: a float, a double, or a pair of bf16 values adjacent along k, where the instruction set
// multiplies those. A panel holds the columns of nv registers for all K words: panel[k][nv * W]. If half a register is
// enough for the last columns of a matrix, they are a panel of their own of half the width. The microkernel
// multiplies a few rows of A with one panel and leaves the sums in a tile on the stack, where its caller's epilogue
// (bias, cell, store) picks them up: 24 stores against thousands of multiplications, and one microkernel serves every
// product. Each sum is one chain over k in rising order whatever the height of the tile, so results do not depend on
// how rows are cut into tiles or shared between threads.
//
// Weights that have left the L2 cache would stall the first tile of every panel, so each tile prefetches a share of
// the next panel while it works on this one (`ahead`: K registers from there; on tiles, which take many rows,
// all of the `share`, in elements; worth 3 to 30 % of a product).

template <class X>
struct WordOf {
  using type = X;
  static constexpr int ks = 1;
};
#if LSTMKERN_BF16
struct __attribute__((packed, aligned(2), may_alias)) Pair {
  uint32_t bits;
};
template <>
struct WordOf<bf16> {
  using type = Pair;
  static constexpr int ks = 2;
};
INLINE Words load(const Pair* p) {
  typedef uint32_t Loose __attribute__((vector_size(LSTMKERN_VECTOR_BYTES), aligned(2), may_alias));
  return *reinterpret_cast<const Loose*>(p);
}
INLINE Words broadcast(Pair x) { return x.bits + Words{}; }
INLINE Vec<float> add_product(Vec<float> sum, Words x, Words b) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)b);
}
#endif
INLINE Vec<float> add_product(Vec<float> sum, Vec<float> x, Vec<float> b) { return sum + x * b; }
INLINE Vec<double> add_product(Vec<double> sum, Vec<double> x, Vec<double> b) { return sum + x * b; }
INLINE ShortVec<float> add_product(ShortVec<float> sum, ShortVec<float> x, ShortVec<float> b) { return sum + x * b; }
INLINE ShortVec<double> add_product(ShortVec<double> sum, ShortVec<double> x, ShortVec<double> b) {
  return sum + x * b;
}

template <class X>
using Word = typename WordOf<X>::type;
template <class X>
constexpr int per_word = WordOf<X>::ks;
template <class X>
constexpr bool is_pair = per_word<X> == 2;
// Whether this operand goes through AMX's tiles, 16 rows by 16 words.
template <class X>
constexpr bool on_tiles = is_pair<X> && LSTMKERN_BF16 == 2;
// K in words; tiles take 16 of them at a time, the rest is zeros.
template <class X>
constexpr int64_t words(int64_t K) {
  const int64_t n = (K + per_word<X> - 1) / per_word<X>;
  return on_tiles<X> ? (n + 15) / 16 * 16 : n;
}
template <class X>
constexpr int64_t depth(int64_t K) {  // of a row of A in elements, its padding included
  return words<X>(K) * per_word<X>;
}

// Whether panels of half a register are in use: where a register is wider than some AVX-512 machines compute at once.
template <class X>
constexpr bool has_short = LSTMKERN_VECTOR_BYTES == 64 && !is_pair<X>;

struct Panel {
  int64_t first;  // column
  int nv;         // width in registers
  bool is_short;  // half a register; nv is 1
  template <class C>
  constexpr int64_t columns() const {
    return is_short ? width<C> / 2 : nv * width<C>;
  }
  // Offset of the panel in the packed matrix of K rows, in elements.
  template <class X>
  int64_t offset(int64_t K, int per_column = 1) const {
    return first * per_column * depth<X>(K);
  }
};

// 32 registers (AVX-512) take 24 sums and leave the rest for A and the panel; 16 (AVX2, and the safe guess elsewhere)
// take 12.
constexpr int kSums = LSTMKERN_VECTOR_BYTES == 64 ? 24 : 12;
constexpr int kWide = LSTMKERN_VECTOR_BYTES == 64 ? 4 : 2;  // registers per row of a panel without gates
template <class X>
constexpr int tile_rows(int nv) {
  return on_tiles<X> ? 32 : kSums / nv < 12 ? kSums / nv : 12;
}

template <class C>
constexpr int64_t kTile = (LSTMKERN_BF16 == 2 ? 128 : kSums) * width<C>;
template <class C>
struct Tile {  // [rows][nv * W]; a product in two parts has its first part's sums from kTile on
  alignas(64) C sums[2 * kTile<C>];
};

#if LSTMKERN_BF16 == 2
#include "tiles.h"
#endif

// Makes the compiler load a value once. It would otherwise load it again for each of two or three uses, but loads are
// the bottleneck of the loop.
template <class V>
INLINE void hold([[maybe_unused]] V& value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

constexpr int kSoon = 12;  // steps of k between the prefetch of a line of this panel and its use

// tile[r][v] = sum over k of a[r][k * Stride] * panel[k][v]. With a `split` these are two products with
// separate sums: the second one begins with the word `split`. Short: the panel has half a register of columns; the
// other half of the sums is zero.
template <int Stride, int MR, int NV, bool Short, class W, class C>
void kernel(const W* const* rows, const W* panel, int64_t K, C* tile, const W* ahead, int64_t split) {
  static_assert(!Short || NV == 1);
  constexpr int across = Short ? width<C> / 2 : width<C>;
  using Sum = std::conditional_t<Short, ShortVec<C>, Vec<C>>;
  auto load_columns = [](const W* p) __attribute__((always_inline)) {
    if constexpr (Short)
      return load_short(p);
    else
      return load(p);
  };
  auto everywhere = [](W x) __attribute__((always_inline)) {
    if constexpr (Short)
      return x - ShortVec<C>{};
    else
      return broadcast(x);
  };
  const W* a[MR];
  Sum sums[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    a[r] = rows[r];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sums[r][v] = Sum{};
  }
  int64_t k = 0;
  auto add_until = [&](int64_t end) __attribute__((always_inline)) {
    for (; k < end; ++k) {
      auto take = [&](int v) __attribute__((always_inline)) {
        if (v * across * sizeof(C) % 64 == 0) __builtin_prefetch(panel + (kSoon * NV + v) * across);
        return load_columns(panel + v * across);
      };
      // Of rows and registers across, the fewer are kept in registers; the others are loaded one by one.
      if constexpr (MR < NV) {
        decltype(everywhere(a[0][0])) x[MR];
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) x[r] = everywhere(a[r][k * Stride]);
        __builtin_prefetch(ahead + k * across, 0, 2);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
          auto b = take(v);
          if (MR > 1) hold(b);
#pragma GCC unroll 16
          for (int r = 0; r < MR; ++r) sums[r][v] = add_product(sums[r][v], x[r], b);
        }
      } else {
        decltype(load_columns(panel)) b[NV];
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) b[v] = take(v);
        __builtin_prefetch(ahead + k * across, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
          auto x = everywhere(a[r][k * Stride]);
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) sums[r][v] = add_product(sums[r][v], x, b[v]);
        }
      }
      panel += NV * across;
    }
  };
  auto keep = [&](C* to) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        if constexpr (Short) {
          store_short(to + r * width<C>, sums[r][v]);
          store_short(to + r * width<C> + across, Sum{});
        } else {
          store(to + (r * NV + v) * across, sums[r][v]);
        }
        sums[r][v] = Sum{};
      }
  };
  if (Stride == 1 && split) {
    add_until(split);
    keep(tile + kTile<C>);
  }
  add_until(K);
  keep(tile);
}

template <class W, class C>
using Kernel = void (*)(const W* const*, const W*, int64_t, C*, const W*, int64_t);

template <int NV, bool Short, class W, class C, int MR = (kSums / NV < 12 ? kSums / NV : 12)>
INLINE Kernel<W, C> kernel_for(int rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return kernel_for<NV, Short, W, C, MR - 1>(rows);
  }
  return kernel<1, MR, NV, Short, W, C>;
}

// Call before multiply() of `rows` rows each time, or one less.
template <class X>
INLINE void prepare([[maybe_unused]] int rows) {
#if LSTMKERN_BF16 == 2
  if constexpr (on_tiles<X>) prepare_tiles(rows);
#endif
}

// Rows of A: a[r][k]. On tiles they must have equal distances, and prepare() must come before, except for the
// `single_row` of a batch of one. (Its sums round differently, so this must not depend on how threads share the batch.)
template <class X, class C>
INLINE void multiply(bool single_row, int rows, const Panel& p, const X* const* a, const X* panel, int64_t K,
                     Tile<C>& tile, const X* ahead, [[maybe_unused]] int64_t share, int64_t split = 0) {
#if LSTMKERN_BF16 == 2
  if constexpr (on_tiles<X>) {
    if (single_row) return multiply_row(p.nv, a[0], panel, words<X>(K), tile.sums, ahead, words<X>(split));
    return multiply_tiles(rows, p.nv, a, panel, words<X>(K), tile.sums, ahead, share, words<X>(split));
  }
#endif
  using W = Word<X>;
  Kernel<W, C> f = p.nv == 1   ? kernel_for<1, false, W, C>(rows)
                   : p.nv == 2 ? kernel_for<2, false, W, C>(rows)
                   : p.nv == 3 ? kernel_for<3, false, W, C>(rows)
                               : kernel_for<4, false, W, C>(rows);
  if constexpr (has_short<X>)
    if (p.is_short) f = kernel_for<1, true, W, C>(rows);
  f(reinterpret_cast<const W* const*>(a), reinterpret_cast<const W*>(panel), words<X>(K), tile.sums,
    reinterpret_cast<const W*>(ahead), words<X>(split));
}

// A = B^T of a row-major matrix B (the weight gradients): kPackedColumns columns of B are packed next to each other,
// a[k * kPackedColumns + r], or for tiles one after the other. Panels of at most kPackedWidth registers.
template <class X>
constexpr int kPackedColumns = on_tiles<X> ? 16 : kSums / 3;
template <class X>
constexpr int kPackedWidth = on_tiles<X> ? 4 : 3;

template <class X, class C>
INLINE void multiply_packed(const Panel& p, const X* a, const X* panel, int64_t K, Tile<C>& tile, const X* ahead,
                            [[maybe_unused]] int64_t share) {
  using W = Word<X>;
  constexpr int height = kPackedColumns<X>;
  const X* rows[height];
  for (int r = 0; r < height; ++r) rows[r] = a + r * (on_tiles<X> ? depth<X>(K) : per_word<X>);
  if constexpr (on_tiles<X>) {
    prepare<X>(height);
    multiply(false, height, p, rows, panel, K, tile, ahead, share);
  } else {
    Kernel<W, C> f = p.nv == 1   ? kernel<height, height, 1, false, W, C>
                     : p.nv == 2 ? kernel<height, height, 2, false, W, C>
                                 : kernel<height, height, 3, false, W, C>;
    if constexpr (has_short<X>)
      if (p.is_short) f = kernel<height, height, 1, true, W, C>;
    f(reinterpret_cast<const W* const*>(rows), reinterpret_cast<const W*>(panel), words<X>(K), tile.sums,
      reinterpret_cast<const W*>(ahead), 0);
  }
}

// Cuts rows [first, last) into tiles of nearly equal height, at most `most`: f(first row, rows).
template <class F>
INLINE void for_tiles(int64_t first, int64_t last, int most, F&& f) {
  const int64_t n = last - first;
  if (n <= 0) return;
  const int64_t count = (n + most - 1) / most, low = n / count, taller = n % count;
  for (int64_t tile = 0; tile < count; ++tile) {
    const int rows = static_cast<int>(low + (tile < taller));
    f(first, rows);
    first += rows;
  }
}

// Rows [j0, j1) times one panel, tile by tile: row(j) is the address of row j of A (and the place to prefetch
// what will be needed with it), receive(j, rows, sums) takes a tile's sums [rows][nv * W] and may overwrite them.
// `next` is the panel that will be multiplied after this one, or this one again if the cache has the next one anyway;
// single_row: the batch has one row; split: the k at which a second product begins.
template <class C, class X, class A, class F>
INLINE void multiply_panel(bool single_row, int64_t j0, int64_t j1, const Panel& p, int64_t K, const X* panel,
                           const X* next, A&& row, F&& receive, int64_t split = 0) {
  if (j1 <= j0) return;
  const int most = tile_rows<X>(p.nv);
  const int64_t tiles = (j1 - j0 + most - 1) / most;
  const int64_t share = next == panel ? 0 : depth<X>(K) * p.columns<C>() / tiles;
  if (!single_row) prepare<X>(static_cast<int>((j1 - j0 + tiles - 1) / tiles));
  for_tiles(j0, j1, most, [&](int64_t j, int tall) {
    const X* a[kMaxRows];
    for (int r = 0; r < tall; ++r) a[r] = row(j + r);
    Tile<C> tile;
    multiply(single_row, tall, p, a, panel, K, tile, next, share, split);
    next += share;
    receive(j, tall, tile.sums);
  });
}
