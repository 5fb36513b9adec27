// The weights of a layer's gates and the forward GEMMs with them. The weights are used in one of four ways: as panels
// packed before the time loop, for x and h in two GEMMs or in one; as panels packed one by one, if each is used once;
// and unpacked (direct.h).

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
  const bool direct, once;
  const int64_t bytes;
  X* panels;  // each of W_ih, followed by W_hh; if `once`, one panel per thread

 public:
  const int64_t x_columns;  // space for x before h in a row of operands, so that one GEMM can take both

  GateWeights(const Layer& layer, int direction, int64_t total)
      : L(layer),
        w(layer.weights[direction]),
        units{layer.H, gates_of(layer.cell)},
        work(forward_work<S>(layer, total)),
        direct(work.direct),
        once(layer.T == 1),
        bytes(work.bytes),
        x_columns(direct && !once ? 0 : depth<X>(layer.I)) {}

  // Elements before a row of operands, so that h begins at a cache line. Otherwise threads that divide the units would
  // write to the same line.
  int64_t gap() const {
    constexpr int64_t line = 64 / sizeof(X);
    return (line - x_columns % line) % line;
  }

  bool joint(int64_t rows, int members) const { return work.joint(rows, members); }
  bool by_rows(int size) const { return divides_rows(work, size); }

  void allocate(Arena& memory) {
    panels = memory.take<X>(direct ? 0 : once ? L.threads * units.largest(K()) : units.packed(K()));
  }

  // Packs a thread's part of the panels that are packed before the time loop.
  void pack(int rank, int size) {
    if (direct || once) return;
    for (int64_t i = part(units.panels(), rank, size); i < part(units.panels(), rank + 1, size); ++i)
      pack_panel(panels + units.offset(units.panel(i), K()), units.panel(i));
  }

  // The GEMMs with panel p: multiply_inputs() for rows of inputs; multiply_step() for a step's rows of h or, if
  // `joint`, of x and h with separate sums. The other arguments are those of multiply_panel().
  template <class A, class F>
  INLINE void multiply_inputs(int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row, F&& receive) {
    if (direct) return multiply_direct(true, false, j0, j1, p, next, row, receive);
    multiply_panel<C>(false, j0, j1, p, L.I, panels + units.offset(p, K()), panels + units.offset(next, K()), row,
                      receive);
  }
  template <class A, class F>
  INLINE void multiply_step(bool joint, int rank, int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row,
                            F&& receive) {
    if (direct) return multiply_direct(joint, true, j0, j1, p, next, row, receive);
    X *panel = panels + units.offset(p, K()), *after = bytes <= kKept ? panel : panels + units.offset(next, K());
    if (once) pack_panel(panel = after = panels + rank * units.largest(K()), p);
    const int64_t skipped = joint ? 0 : x_columns, offset = p.columns<C>() * skipped;
    multiply_panel<C>(L.N == 1, j0, j1, p, K() - skipped, panel + offset, after + offset, row, receive,
                      x_columns - skipped);
  }

 private:
  int64_t K() const { return x_columns + L.P; }

  void pack_panel(X* to, const Panel& p) const {
    units.pack(to, p, static_cast<const S*>(w.w_ih), L.I);
    units.pack(to + p.columns<C>() * x_columns, p, static_cast<const S*>(w.w_hh), L.P);
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
