// Products on packed panels: the microkernel that every product of the library runs on, and the packing for it.
//
// A panel holds nv registers' worth of columns for all K: panel[k][nv * W]. The microkernel multiplies a few rows of A,
// wherever they lie, with one panel and leaves the sums in a tile on the stack, where its caller's epilogue (bias,
// cell, store) picks them up: 24 stores against thousands of multiplications, and one microkernel serves every product.
// Each sum is one chain over k in rising order whatever the height of the tile, so results do not depend on how rows
// are cut into tiles or shared between threads.

// 32 registers (AVX-512) take 24 sums and leave the rest for A and the panel; 16 (AVX2, and the safe guess elsewhere)
// take 12.
constexpr int kSums = LSTMKERN_VECTOR_BYTES == 64 ? 24 : 12;
constexpr int kWide = LSTMKERN_VECTOR_BYTES == 64 ? 4 : 2;  // registers a row in products without gates
constexpr int kMaxRows = 12;
constexpr int tile_rows(int nv) { return kSums / nv < kMaxRows ? kSums / nv : kMaxRows; }

template <class C>
struct Tile {  // [rows][nv * W]
  alignas(LSTMKERN_VECTOR_BYTES) C sums[kSums * width<C>];
};

// tile[r][v] = sum over k of a[r][k * Stride] * panel[k][v].
template <int Stride, int MR, int NV, class C>
void kernel(const C* const* rows, const C* panel, int64_t K, C* tile) {
  const C* a[MR];
  Vec<C> sums[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    a[r] = rows[r];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sums[r][v] = Vec<C>{};
  }
  for (int64_t k = 0; k < K; ++k) {
    Vec<C> b[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) b[v] = load(panel + v * width<C>);
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      Vec<C> x = broadcast(a[r][k * Stride]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) sums[r][v] += x * b[v];
    }
    panel += NV * width<C>;
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) store(tile + (r * NV + v) * width<C>, sums[r][v]);
}

template <class C>
using Kernel = void (*)(const C* const*, const C*, int64_t, C*);

template <int NV, class C, int MR = tile_rows(NV)>
INLINE Kernel<C> kernel_for(int rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return kernel_for<NV, C, MR - 1>(rows);
  }
  return kernel<1, MR, NV, C>;
}

// Rows of A wherever they lie: a[r][k].
template <class C>
INLINE void multiply(int rows, int nv, const C* const* a, const C* panel, int64_t K, Tile<C>& tile) {
  Kernel<C> f = nv == 1   ? kernel_for<1, C>(rows)
                : nv == 2 ? kernel_for<2, C>(rows)
                : nv == 3 ? kernel_for<3, C>(rows)
                          : kernel_for<4, C>(rows);
  f(a, panel, K, tile.sums);
}

// kDown rows of A packed side by side: a[k * kDown + r]. Panels of at most three registers.
constexpr int kDown = tile_rows(3);
template <class C>
INLINE void multiply_packed(int nv, const C* a, const C* panel, int64_t K, Tile<C>& tile) {
  const C* rows[kDown];
  for (int r = 0; r < kDown; ++r) rows[r] = a + r;
  Kernel<C> f = nv == 1   ? kernel<kDown, kDown, 1, C>
                : nv == 2 ? kernel<kDown, kDown, 2, C>
                          : kernel<kDown, kDown, 3, C>;
  f(rows, panel, K, tile.sums);
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

struct Panel {
  int64_t first;   // column
  int64_t offset;  // of the panel's values among the packed
  int nv;          // registers across
};

// Columns cut into panels of at most Max registers, widths differing by one at most (13 registers: 4 3 3 3).
template <class C, int Max>
struct Columns {
  int64_t count;  // columns
  int64_t vectors() const { return (count + width<C> - 1) / width<C>; }
  int64_t panels() const { return (vectors() + Max - 1) / Max; }
  int64_t packed(int64_t K) const { return vectors() * width<C> * K; }
  Panel panel(int64_t index, int64_t K) const {
    const int64_t first = vectors() * index / panels(), next = vectors() * (index + 1) / panels();
    return {first * width<C>, first * width<C> * K, static_cast<int>(next - first)};
  }
};

// One row of B, from src, into its place k of every panel; zeros for a null src and past the end.
template <class C, int Max, class S>
void pack_row(C* packed, const Columns<C, Max>& columns, int64_t K, int64_t k, const S* src) {
  constexpr int W = width<C>;
  for (int64_t i = 0, panels = columns.panels(); i < panels; ++i) {
    const Panel p = columns.panel(i, K);
    C* to = packed + p.offset + k * p.nv * W;
    for (int64_t v = 0; v < p.nv; ++v) {
      const int64_t column = p.first + v * W;
      store(to + v * W, src ? load(src + column, columns.count - column) : Vec<C>{});
    }
  }
}

// W x W transpose in registers: the butterfly exchanges blocks of 1, 2, 4, ... elements.
template <int Step, class C>
INLINE void exchange(Vec<C> (&v)[width<C>]) {
  constexpr int W = width<C>;
  typename Register<C>::bits low, high;
#pragma GCC unroll 16
  for (int l = 0; l < W; ++l) {
    low[l] = (l & Step) ? l - Step + W : l;
    high[l] = (l & Step) ? l + W : l + Step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r) {
    if (r & Step) continue;
    Vec<C> a = v[r], b = v[r + Step];
    v[r] = __builtin_shuffle(a, b, low);
    v[r + Step] = __builtin_shuffle(a, b, high);
  }
  if constexpr (Step * 2 < W) exchange<Step * 2, C>(v);
}

// Rows of a weight matrix become lanes: to[k * stride + lane] = from[lane * ld + k], lanes < rows, zero beyond.
template <class C, class S>
void pack_transposed(C* to, int64_t stride, const S* from, int64_t ld, int64_t rows, int64_t K) {
  constexpr int W = width<C>;
  for (int64_t k = 0; k < K; k += W) {
    Vec<C> block[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) block[r] = r < rows ? load(from + r * ld + k, K - k) : Vec<C>{};
    exchange<1, C>(block);
    int64_t n = K - k < W ? K - k : W;
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if (r < n) store(to + (k + r) * stride, block[r]);
  }
}
