// The weights of a layer's gates and the forward GEMMs with them. Weights are used in place (direct.h) or as packed
// panels, for x and h in two GEMMs or in one. A thread packs a panel just before it multiplies it for the first time,
// so that the GEMM finds it in the cache, and keeps it if another GEMM will need it. Only where threads divide the
// rows, so that all of them use every panel, panels are packed before the time loop, each by one thread.

// Rows whose gates fit a thread's L2 cache together with the weights, but enough to make use of each panel.
template <class S>
int64_t gate_rows_at_once(const Layer& layer, int64_t total) {
  int64_t rows = (int64_t(1) << 18) / (gates_of(layer.cell) * padded(layer.H) * sizeof(typename Types<S>::Sum));
  rows = rows < 96 ? 96 : rows > 768 ? 768 : rows;
  return rows < total ? rows : total;
}

// What the cost model (cost.h) knows of a forward pass over one direction.
template <class S>
Work forward_work(const Layer& layer, int64_t rows) {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const GatePanels<X, C> units{layer.H, gates_of(layer.cell)};
  Work w = work_of_pass<S>(layer, rows);
  w.saves = layer.gates.data != nullptr;
  w.direct = few_rows_forward<X>(layer, rows);
  w.bytes = units.packed(layer.I + layer.P) * sizeof(X);
  w.panels = units.panels();
  const bool large = w.bytes > cached_bytes(w.tiles) && !w.direct;
  w.once = layer.T == 1 || (large && rows <= gate_rows_at_once<S>(layer, rows) + layer.N);
  return w;
}

template <class S>
class GateWeights {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  static constexpr int W = width<C>;

  const Layer& L;
  const Weights& w;
  const GatePanels<X, C> units;
  const Work work;
  const bool direct;
  const bool once_x, once_h;  // W_ih, W_hh take part in one GEMM
  const int64_t bytes, kept_columns, once_columns;
  X* panels;   // each of W_ih, followed by W_hh: of the weights that take part in several GEMMs
  X* scratch;  // [threads, one panel of the others]
  bool* kept;  // [registers of units][2]: whether the panel that begins there is packed, of W_ih and of W_hh

 public:
  const int64_t x_columns;  // space for x before h in a row of operands, so that one GEMM can take both

  GateWeights(const Layer& layer, int direction, int64_t total)
      : L(layer),
        w(layer.weights[direction]),
        units{layer.H, gates_of(layer.cell)},
        work(forward_work<S>(layer, total)),
        direct(work.direct),
        once_x(work.once),
        once_h(work.once && layer.T - !layer.h0 <= 1),
        bytes(work.bytes),
        kept_columns((once_x ? 0 : depth<X>(layer.I)) + (once_h ? 0 : layer.P)),
        once_columns(depth<X>(layer.I) + layer.P - kept_columns),
        x_columns(direct && layer.T > 1 ? 0 : depth<X>(layer.I)) {}

  // Elements before a row of operands, so that h begins at a cache line. Otherwise threads that divide the units would
  // write to the same line.
  int64_t gap() const {
    constexpr int64_t line = 64 / sizeof(X);
    return (line - x_columns % line) % line;
  }

  bool joint(int64_t rows, int members) const { return work.joint(rows, members); }
  bool by_rows(int size) const { return divides_rows(work, size); }

  void allocate(Arena& memory) {
    panels = memory.take<X>(direct ? 0 : units.packed(kept_columns));
    scratch = memory.take<X>(direct ? 0 : L.threads * units.largest(once_columns));
    kept = memory.take<bool>(direct ? 0 : 2 * (padded(L.H) / W));
  }

  // Before the time loop, for a thread's part of the panels.
  void prepare(int rank, int size) {
    if (direct) return;
    const bool ahead = size > 1 && by_rows(size);
    for (int64_t i = part(units.panels(), rank, size); i < part(units.panels(), rank + 1, size); ++i)
      for (const bool of_h : {false, true}) {
        const Panel p = units.panel(i);
        is_kept(of_h, p) = false;
        if (ahead && !once(of_h)) packed(of_h, rank, p);
      }
  }

  // The GEMMs with panel p: multiply_inputs() for rows of inputs; multiply_step() for a step's rows of h or, if
  // `joint`, of x and h with separate sums. The other arguments are those of multiply_panel().
  template <class A, class F>
  INLINE void multiply_inputs(int rank, int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row,
                              F&& receive) {
    if (direct) return multiply_direct(true, false, j0, j1, p, next, row, receive);
    const X* const panel = packed(false, rank, p);
    multiply_panel<C>(false, j0, j1, p, L.I, panel, is_kept(false, next) ? kept_panel(false, next) : panel, row,
                      receive);
  }
  template <class A, class F>
  INLINE void multiply_step(bool joint, int rank, int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row,
                            F&& receive) {
    if (direct) return multiply_direct(joint, true, j0, j1, p, next, row, receive);
    const X *of_h = packed(true, rank, p), *panel = joint ? packed(false, rank, p) : of_h;
    const bool ahead = bytes > kKept && is_kept(!joint, next);
    multiply_panel<C>(L.N == 1, j0, j1, p, (joint ? x_columns : 0) + L.P, panel,
                      ahead ? kept_panel(!joint, next) : panel, row, receive, joint ? x_columns : 0);
  }

  // Whether multiply_step() with `rows` rows whose h is zero may be left to multiply_zeros(): the sums of h are zero,
  // which an infinity or NaN in the weights would make NaN.
  bool skips(int64_t rows, const Panel& p) const {
    for (int part = 0; rows >= kWorthSkipping && part < units.parts(p); ++part) {
      const int64_t all = units.rows(p, part), across = units.across(p);
      const S* const first = static_cast<const S*>(w.w_hh) + units.row(p, part) * L.P;
      if (!all_finite<C>(first, 1, 0, (all < across ? all : across) * L.P)) return false;
    }
    return rows >= kWorthSkipping;
  }
  template <class A, class F>
  INLINE void multiply_zeros(bool joint, int rank, int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row,
                             F&& receive) {
    auto clear = [&](C* sums, int tall) { __builtin_memset(sums, 0, sizeof(C) * tall * p.nv * W); };
    if (joint) {
      multiply_inputs(rank, j0, j1, p, next, row, [&](int64_t j, int tall, C* sums) {
        __builtin_memcpy(sums + kTile<C>, sums, sizeof(C) * tall * p.nv * W);
        clear(sums, tall);
        receive(j, tall, sums);
      });
    } else {
      for_tiles(j0, j1, tile_rows<X>(p.nv), [&](int64_t j, int tall) {
        for (int r = 0; r < tall; ++r) row(j + r);  // prefetches
        Tile<C> tile;
        clear(tile.sums, tall);
        receive(j, tall, tile.sums);
      });
    }
  }

 private:
  // So many rows take longer to multiply with a panel than it takes to look for infinities in it.
  static constexpr int64_t kWorthSkipping = 8;

  bool once(bool of_h) const { return of_h ? once_h : once_x; }
  bool& is_kept(bool of_h, const Panel& p) const { return kept[uint64_t(p.first) / W * 2 + of_h]; }

  // Panel p of W_ih or W_hh. Of weights that are both used once, or both kept, the two panels are next to each other.
  int64_t behind(bool of_h, const Panel& p) const { return of_h && once_x == once_h ? p.columns<C>() * x_columns : 0; }
  X* kept_panel(bool of_h, const Panel& p) const { return panels + units.offset(p, kept_columns) + behind(of_h, p); }
  INLINE const X* packed(bool of_h, int rank, const Panel& p) const {
    return is_kept(of_h, p) ? kept_panel(of_h, p) : pack(of_h, rank, p);
  }
  __attribute__((noinline)) const X* pack(bool of_h, int rank, const Panel& p) const {
    X* const to = once(of_h) ? scratch + rank * units.largest(once_columns) + behind(of_h, p) : kept_panel(of_h, p);
    units.pack(to, p, static_cast<const S*>(of_h ? w.w_hh : w.w_ih), of_h ? L.P : L.I);
    is_kept(of_h, p) = !once(of_h);
    return to;
  }

  // With the weights of x, of h or, in joint steps, of both: a row then has h at x_columns, and the sums of x begin at
  // kTile.
  template <class A, class F>
  INLINE void multiply_direct(bool of_x, bool of_h, int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row,
                              F&& receive) {
    const S *const ih = static_cast<const S*>(w.w_ih), *const hh = static_cast<const S*>(w.w_hh);
    for_tiles(j0, j1, kRowsAtOnce, [&](int64_t j, int tall) {
      const X* a[kRowsAtOnce];
      for (int r = 0; r < tall; ++r) a[r] = row(j + r);
      Tile<C> tile;
      with_rows(tall, [&](auto R) {
        if (of_x)
          multiply_rows<R.value>(a, ih, L.I, p, tile.sums + (of_h ? kTile<C> : 0), of_h ? hh : ih, of_h ? L.P : L.I,
                                 of_h ? p : next);
        for (int r = 0; of_x && r < tall; ++r) a[r] += x_columns;
        if (of_h) multiply_rows<R.value>(a, hh, L.P, p, tile.sums, of_x ? ih : hh, of_x ? L.I : L.P, next);
      });
      receive(j, tall, tile.sums);
    });
  }

  // R rows times panel p of `from` [G*H, K]; panel `next` of `after` [G*H, K_after] is read next.
  template <int R>
  INLINE void multiply_rows(const X* const* a, const S* from, int64_t K, const Panel& p, C* sums, const S* after,
                            int64_t K_after, const Panel& next) const {
    const int parts = units.parts(p);
    for (int part = 0; part < parts; ++part) {
      const S* const rows = from + units.row(p, part) * K;
      const S* const ahead =
          part + 1 < parts ? from + units.row(p, part + 1) * K : after + units.row(next, 0) * K_after;
      C* const to = sums + part * units.across(p);
      if (bytes <= kKept)
        times_rows<R, true, C>(a, rows, units.rows(p, part), K, to, p.nv * W, ahead);
      else
        times_rows<R, false, C>(a, rows, units.rows(p, part), K, to, p.nv * W, ahead);
    }
  }
};
