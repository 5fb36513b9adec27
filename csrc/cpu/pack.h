// Packing of operands for gemm.h: panels of columns, and transposed rows.

// Columns divided into panels of at most Max registers of sums of type C. Widths differ by at most one register
// (13 registers: 4 3 3 3). Half a register is another panel, the last one.
template <class X, class C, int Max>
struct Columns {
  int64_t count;  // columns
  bool may_be_short = has_short<X>;
  bool has_half() const { return may_be_short && count % width<C> > 0 && count % width<C> <= width<C> / 2; }
  int64_t vectors() const { return (count + width<C> - 1) / width<C>; }
  int64_t panels() const { return whole_panels() + has_half(); }
  int64_t packed(int64_t K) const { return (vectors() * width<C> - has_half() * (width<C> / 2)) * depth<X>(K); }
  Panel panel(int64_t index) const {
    const int64_t whole = vectors() - has_half(), panels = whole_panels();
    if (index == panels) return {whole * width<C>, 1, true};
    const int64_t first = whole * index / panels, next = whole * (index + 1) / panels;
    return {first * width<C>, static_cast<int>(next - first), false};
  }

 private:
  int64_t whole_panels() const { return (vectors() - has_half() + Max - 1) / Max; }
};

// Stores a register of a panel, or the half that it has.
template <class X, class C>
INLINE void store_columns(const Panel& p, C* to, Vec<C> v) {
  if (has_short<X> && p.is_short)
    store_short(to, lower_half<C>(v));
  else
    store(to, v);
}

// Packs word `word` of panel p, which begins at `to`. source(k) is the address of row k of B, or null for zeros. B has
// K rows of `count` columns; past them the panel holds zeros.
template <class X, class C, class F>
INLINE void pack_word(X* to, const Panel& p, int64_t count, int64_t K, int64_t word, F&& source) {
  constexpr int W = width<C>;
  const int64_t k = word * per_word<X>;
  const auto* first = k < K ? source(k) : nullptr;
  decltype(first) second = per_word<X> == 2 && k + 1 < K ? source(k + 1) : nullptr;
  to += word * p.columns<C>() * per_word<X>;
  for (int64_t v = 0; v < p.nv; ++v) {
    const int64_t column = p.first + v * W, n = count - column;
    if constexpr (is_pair<X>)
      store_words(to + v * W * 2, interleave(first ? load_bits(first + column, n) : Halves{},
                                             second ? load_bits(second + column, n) : Halves{}));
    else
      store_columns<X, C>(p, to + v * W, first ? load(first + column, n) : Vec<C>{});
  }
}

// The same for every panel.
template <class X, class C, int Max, class F>
void pack_word(X* packed, const Columns<X, C, Max>& columns, int64_t K, int64_t word, F&& source) {
  for (int64_t i = 0, panels = columns.panels(); i < panels; ++i) {
    const Panel p = columns.panel(i);
    pack_word<X, C>(packed + p.template offset<X>(K), p, columns.count, K, word, source);
  }
}

// In every two adjacent blocks of Step lanes, exchanges the second block of a with the first block of b.
template <int Step, class C>
INLINE void exchange_blocks(Vec<C>& a, Vec<C>& b) {
  constexpr int W = width<C>;
  typename Register<C>::bits low, high;
#pragma GCC unroll 16
  for (int l = 0; l < W; ++l) {
    low[l] = (l & Step) ? l - Step + W : l;
    high[l] = (l & Step) ? l + W : l + Step;
  }
  const Vec<C> first = a;
  a = __builtin_shuffle(first, b, low);
  b = __builtin_shuffle(first, b, high);
}

// W x W transpose in registers: the butterfly exchanges blocks of 1, 2, 4, ... elements.
template <int Step, class C>
INLINE void exchange(Vec<C> (&v)[width<C>]) {
  constexpr int W = width<C>;
#pragma GCC unroll 16
  for (int r = 0; r < W; ++r)
    if (!(r & Step)) exchange_blocks<Step, C>(v[r], v[r + Step]);
  if constexpr (Step * 2 < W) exchange<Step * 2, C>(v);
}

// Packs a register of panel p: word k of the row of lane l is stored in that lane. A null row is zeros; past K the
// result is zero too.
template <class X, class C, class S>
void pack_transposed(X* to, const Panel& p, const S* const (&rows)[width<C>], int64_t K) {
  constexpr int W = width<C>;
  const int64_t all = words<X>(K), stride = p.columns<C>() * per_word<X>;
  int64_t k = 0;
  auto pack_block = [&](auto&& word) __attribute__((always_inline)) {
    Vec<C> block[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) block[r] = word(rows[r]);
    exchange<1, C>(block);
    const int64_t n = all - k < W ? all - k : W;
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if (r < n) store_columns<X, C>(p, reinterpret_cast<C*>(to + (k + r) * stride), block[r]);
  };
  bool whole = !is_pair<X>;  // no row is null
  for (int l = 0; l < W; ++l) whole = whole && rows[l];
  if constexpr (!is_pair<X>)
    for (; whole && k + W <= K; k += W)
      pack_block([&](const S* row) __attribute__((always_inline)) { return load(row + k); });
  for (; k < all; k += W)
    pack_block([&](const S* row) __attribute__((always_inline)) {
      if constexpr (is_pair<X>)
        return row && k * 2 < K ? (Vec<C>)load_pairs(row + k * 2, K - k * 2) : Vec<C>{};
      else
        return row ? load(row + k, K - k) : Vec<C>{};
    });
}

// Packs panel p, whose column c is the row at the address row(c).
template <class X, class C, class F>
void pack_transposed(X* to, const Panel& p, int64_t K, F&& row) {
  for (int v = 0; v < p.nv; ++v) {
    decltype(row(int64_t(0))) rows[width<C>];
    for (int l = 0; l < width<C>; ++l) rows[l] = row(v * width<C> + l);
    pack_transposed<X, C>(to + v * width<C> * per_word<X>, p, rows, K);
  }
}

// Packs `tiles` tiles of kPackedColumns columns each for multiply_packed(), from K rows with a distance of ld elements.
template <class X, class C>
void pack_columns(X* packed, const X* from, int64_t ld, int64_t tiles, int64_t K) {
  constexpr int columns = kPackedColumns<X>;
  const int64_t size = columns * depth<X>(K);
  if constexpr (on_tiles<X>) {
    const int64_t all = words<X>(K);
    for (int64_t i = 0; i < tiles; ++i)
      for (int64_t k = 0; k < all; k += 16) {
        Vec<C> block[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) {
          const X* row = from + (k + r) * 2 * ld + i * columns;
          block[r] = (Vec<C>)interleave((k + r) * 2 < K ? load_bits(row) : Halves{},
                                        (k + r) * 2 + 1 < K ? load_bits(row + ld) : Halves{});
        }
        exchange<1, C>(block);
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) store(reinterpret_cast<C*>(packed + i * size + r * 2 * all + k * 2), block[r]);
      }
  } else {
    for (int64_t k = 0; k < K; k += per_word<X>)
      for (int64_t i = 0; i < tiles; ++i) {
        X* to = packed + i * size + k * columns;
        const X* row = from + k * ld + i * columns;
        if constexpr (is_pair<X>)
          for (int r = 0; r < columns; ++r) {
            to[r * 2] = row[r];
            to[r * 2 + 1] = k + 1 < K ? row[ld + r] : X{};
          }
        else
          __builtin_memcpy(to, row, sizeof(X) * columns);
      }
  }
}
