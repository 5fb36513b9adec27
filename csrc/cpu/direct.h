// GEMMs with few rows, where packing the weights into panels would cost more than it saves: the weights are read in
// place, and each register of them is multiplied with several rows of A.

// Whether all rows of a call together are few. Where there are instructions for bf16 pairs, packing pays off sooner.
// Forward a product of rows ends with a sum across every register, about as long as the product for 8 columns; packing
// costs as much as some rows, fewer where there is one step, which packs each panel as it uses it. Backward the
// weights' rows are read piece by piece: far apart, each piece is another page.
template <class X>
bool few_rows_forward(const Layer& layer, int64_t all_rows) {
  const int64_t K = layer.I < layer.P ? layer.I : layer.P;
  return layer.P == layer.H &&
         (all_rows <= 4 || (!is_pair<X> && all_rows <= (layer.T > 1 ? 64 : 48) && 8 * all_rows <= K));
}
template <class X>
bool few_rows_backward(const Layer& layer, int64_t all_rows) {
  const int64_t apart = layer.I > layer.P ? layer.I : layer.P;
  return layer.P == layer.H && (all_rows <= 4 || (!is_pair<X> && all_rows <= (apart <= 256 ? 24 : 6)));
}

// Lane l of v[0] becomes the sum of v[l]'s lanes: a transpose that adds up what it exchanges.
template <int Step, class C>
INLINE void sum_lanes(Vec<C> (&v)[width<C>]) {
  constexpr int W = width<C>;
  if constexpr (Step < W) {
#pragma GCC unroll 16
    for (int r = 0; r < W; r += 2 * Step) {
      exchange_blocks<Step, C>(v[r], v[r + Step]);
      v[r] += v[r + Step];
    }
    sum_lanes<Step * 2, C>(v);
  }
}

constexpr int kRowsAtOnce = kSums / 4;
// Rows of the matrix that are read side by side, a power of two: as many as there are registers for, or four if they do
// not stay in the L2 cache, as fewer streams come faster from beyond it.
template <class C>
constexpr int units_at_once(int rows, bool kept) {
  int units = 1;
  while (units < width<C> && (kept || units < 4) && 2 * units * rows <= kSums) units *= 2;
  return units;
}

// R rows of a times rows of a matrix [.., K]: lane l of to + r * stride becomes the sum over k of a[r][k] * w[l * K +
// k] for l < rows. Unless the matrix is kept in the L2 cache, what will be read next is prefetched, in the
// order of memory; `ahead`: the rows that will be multiplied after these.
template <int R, bool kKeptInL2, class C, class X, class S>
void times_rows(const X* const* a, const S* w, int64_t rows, int64_t K, C* to, int64_t stride, const S* ahead) {
  constexpr int W = width<C>, U = units_at_once<C>(R, kKeptInL2);
  Vec<C> parts[R][W];
  for (int u = 0; u < W; u += U) {
    const S *row[U], *next = u + U < W ? w + (u + U) * K : ahead;
    Vec<C> sums[R][U] = {};
#pragma GCC unroll 16
    for (int l = 0; l < U; ++l) row[l] = w + (u + l < rows ? u + l : 0) * K;
    auto add = [&](int64_t k, auto&& take) {
      Vec<C> x[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) x[r] = take(a[r] + k);
#pragma GCC unroll 16
      for (int l = 0; l < U; ++l) {
        const Vec<C> b = take(row[l] + k);
        if (!kKeptInL2) __builtin_prefetch(next + k * U + l * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sums[r][l] += x[r] * b;
      }
    };
    int64_t k = 0;
    for (; k + W <= K; k += W) add(k, [](auto* p) { return load(p); });
    if (k < K) add(k, [&](auto* p) { return load(p, K - k); });
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int l = 0; l < U; ++l) parts[r][u + l] = sums[r][l];
  }
  for (int r = 0; r < R; ++r) {
    sum_lanes<1, C>(parts[r]);
    store(to + r * stride, parts[r][0], rows);
  }
}

// Adds to R rows of sums a[r][k] times row k of w, K rows, of whose kWide registers of columns n columns are inside.
template <int R, class C, class X, class S>
void add_times_columns(const X* const* a, const S* w, int64_t ld, int64_t K, int64_t n, C* to) {
  constexpr int W = width<C>;
  Vec<C> sums[R][kWide];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) sums[r][v] = load(to + (r * kWide + v) * W);
  auto add = [&](auto&& take) {
    for (int64_t k = 0; k < K; ++k) {
      Vec<C> b[kWide];
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) b[v] = take(w + k * ld + v * W, n - v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec<C> x = broadcast(C(value(a[r][k])));
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) sums[r][v] += x * b[v];
      }
    }
  };
  if (n >= kWide * W)
    add([](const S* p, int64_t) { return load(p); });
  else
    add([](const S* p, int64_t inside) { return load(p, inside); });
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) store(to + (r * kWide + v) * W, sums[r][v]);
}

// f(constant) for the number of rows, at most kRowsAtOnce.
template <int R = kRowsAtOnce, class F>
INLINE void with_rows(int rows, F&& f) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R - 1>(rows, f);
  }
  f(std::integral_constant<int, R>{});
}
