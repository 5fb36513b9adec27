// Types, addresses in tensors and the order of the steps, for the kernels and the cells. Included after simd.h.

// The types for values stored as S: that of sums, states and cells, and that of the operands of GEMMs.
template <class S>
struct Types {
  using Sum = float;
  using Operand = float;  // 16-bit values are computed in fp32
};
#if LSTMKERN_BF16
template <>
struct Types<bf16> {  // except where instructions multiply bf16
  using Sum = float;
  using Operand = bf16;
};
#endif
template <>
struct Types<double> {
  using Sum = double;
  using Operand = double;
};

constexpr int kMaxRows = LSTMKERN_BF16 == 2 ? 32 : 12;  // of a tile of sums

template <class T>
INLINE T* at(const View& view, const Layer& layer, int64_t t, int64_t j) {
  return static_cast<T*>(view.data) + view.step * layer.place[t] + view.lane * layer.order[j];
}

// A value rounded to storage type S.
template <class S, class C>
INLINE Vec<C> rounded(Vec<C> v) {
  if constexpr (sizeof(S) == sizeof(C))
    return v;
  else
    return widen(narrow(v, S{}), S{});
}

// Steps in the order in which a direction runs through them.
struct Steps {
  const Layer& layer;
  bool reversed;
  int64_t t(int64_t s) const { return reversed ? layer.T - 1 - s : s; }
  int64_t active(int64_t s) const { return s < 0 || s >= layer.T ? 0 : layer.active[t(s)]; }
  // Sequences j >= ended(s) take their last step at s; sequences j >= begun(s) take their first.
  int64_t ended(int64_t s) const { return active(s + 1) < active(s) ? active(s + 1) : active(s); }
  int64_t begun(int64_t s) const { return active(s - 1) < active(s) ? active(s - 1) : active(s); }
  // How many of the sequences j0..j1 take part in step s.
  int64_t active(int64_t s, int64_t j0, int64_t j1) const {
    const int64_t n = active(s);
    return n <= j0 ? 0 : (n < j1 ? n : j1) - j0;
  }
  // The end of a chunk of the sequences j0..j1 that begins at step s: as many steps as have together at most `rows`
  // rows, at least one.
  int64_t chunk_end(int64_t s, int64_t rows, int64_t j0, int64_t j1) const {
    int64_t sum = active(s, j0, j1);
    for (++s; s < layer.T && sum + active(s, j0, j1) <= rows; ++s) sum += active(s, j0, j1);
    return s;
  }
  int64_t chunk_begin(int64_t end, int64_t rows) const {
    int64_t s = end - 1, sum = active(s);
    for (; s > 0 && sum + active(s - 1) <= rows; --s) sum += active(s - 1);
    return s;
  }
  // The number of rows of the sequences j0..j1 in steps [begin, end).
  int64_t count(int64_t begin, int64_t end, int64_t j0, int64_t j1) const {
    int64_t rows = 0;
    for (int64_t s = begin; s < end; ++s) rows += active(s, j0, j1);
    return rows;
  }
  // f(row of the chunk, step, sequence) for rows [from, to) of the sequences j0..j1 in the steps from begin on.
  template <class F>
  INLINE void for_rows(int64_t begin, int64_t from, int64_t to, int64_t j0, int64_t j1, F&& f) const {
    int64_t s = begin, base = 0;
    for (int64_t row = from; row < to; ++row) {
      while (row >= base + active(s, j0, j1)) base += active(s++, j0, j1);
      f(row, s, j0 + row - base);
    }
  }
};
