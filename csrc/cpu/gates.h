// The weights of a layer's gates and the forward products with them, in one of four ways: from panels that were packed
// before the time loop, x and h each by itself or both at once; from panels packed one by one, where each is used once;
// and from the weights where they lie (direct.h).

template <Cell CELL, class S>
class GateWeights {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  static constexpr int G = gates_of(CELL), W = width<C>;

  const Layer& L;
  const Weights& w;
  const UnitPanels<CELL, X, C> units;
  const bool direct, once, kept;
  X *w_ih, *w_hh;  // panels; where joint, w_ih's lie before w_hh's; where once, of each rank the one at hand

 public:
  const bool joint;         // x and h are rows of one product:
  const int64_t x_columns;  // of a row before h's, 0 unless joint

  GateWeights(const Layer& layer, int direction, int64_t total)
      : L(layer),
        w(layer.weights[direction]),
        units{layer.H},
        direct(few_rows_forward<X>(layer, total)),
        once(layer.T == 1),
        kept(units.packed(layer.I + layer.P) * int64_t(sizeof(X)) <= kKept),
        joint(!direct && (once || in_one_product(layer, total))),
        x_columns(joint ? depth<X>(layer.I) : 0) {}

  void carve(Carver& memory) {
    w_ih = memory.take<X>(direct || joint ? 0 : units.packed(L.I));
    w_hh = memory.take<X>(direct ? 0
                          : once ? L.threads * units.largest(x_columns + L.P)
                                 : units.packed(x_columns + L.P));
  }

  // Packs a thread's share of what is packed before the time loop.
  void pack(int rank, int size) {
    if (direct || once) return;
    for (int64_t i = part(units.panels(), rank, size); i < part(units.panels(), rank + 1, size); ++i) {
      const Panel p = units.panel(i);
      if (!joint) units.pack(w_ih + units.offset(p, L.I), p, static_cast<const S*>(w.w_ih), L.I);
      pack_step(w_hh + units.offset(p, x_columns + L.P), p);
    }
  }

  // The products of inputs' rows, where not joint, and of a step's (h, or x and h: two products side by side) with
  // panel p. The arguments as for multiply_panel().
  template <class A, class F>
  INLINE void multiply_inputs(int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row, F&& receive) {
    if (direct) return multiply_direct(j0, j1, p, next, L.I, w.w_ih, row, receive);
    multiply_panel<C>(false, j0, j1, p.nv, L.I, w_ih + units.offset(p, L.I), w_ih + units.offset(next, L.I), row,
                      receive);
  }
  template <class A, class F>
  INLINE void multiply_step(int rank, int64_t j0, int64_t j1, const Panel& p, const Panel& next, A&& row, F&& receive) {
    if (direct) return multiply_direct(j0, j1, p, next, L.P, w.w_hh, row, receive);
    const int64_t K = x_columns + L.P;
    X *panel = w_hh + units.offset(p, K), *after = kept ? panel : w_hh + units.offset(next, K);
    if (once) pack_step(panel = after = w_hh + rank * units.largest(K), p);
    multiply_panel<C>(L.N == 1, j0, j1, p.nv, K, panel, after, row, receive, x_columns);
  }

 private:
  // Saves x W_ih^T the way through the cache (the sums are the same, bit for bit), but needs rows enough to read W_ih
  // for at every step, the more the further away it lies (measured: benchmarks/README.md).
  static bool in_one_product(const Layer& layer, int64_t total) {
    const int groups = Share::by_rows(layer.N, layer.threads) ? layer.threads : 1;
    const int64_t rows = total / layer.T / groups, tiles = (rows + 31) / 32;
    // Tiles that are a quarter lower than they could be are too low for what they load.
    if (on_tiles<X> && 4 * rows < 3 * tiles * (rows <= 16 * tiles ? 16 : 32)) return false;
    const int64_t weights = G * layer.H * (layer.I + layer.P) * sizeof(X) * groups / layer.threads;
    return rows >= 4 + weights / (1 << 20);
  }

  // A panel of the weights that a step multiplies with.
  void pack_step(X* to, const Panel& p) const {
    if (joint) units.pack(to, p, static_cast<const S*>(w.w_ih), L.I);
    units.pack(to + p.nv * W * x_columns, p, static_cast<const S*>(w.w_hh), L.P);
  }

  template <class A, class F>
  INLINE void multiply_direct(int64_t j0, int64_t j1, const Panel& p, const Panel& next, int64_t K, const void* weights,
                              A&& row, F&& receive) {
    const S* const from = static_cast<const S*>(weights);  // [G*H, K]
    for_tiles(j0, j1, kRowsAtOnce, [&](int64_t j, int tall) {
      const X* a[kRowsAtOnce];
      for (int r = 0; r < tall; ++r) a[r] = row(j + r);
      Tile<C> tile;
      with_rows(tall, [&](auto R) {
        auto first_row = [&](const Panel& of, int v) {  // of register v
          return v / (of.nv / G) * L.H + of.first + v % (of.nv / G) * W;
        };
        for (int v = 0; v < p.nv; ++v)
          times_rows<R.value, C>(a, from + first_row(p, v) * K, K, L.H - p.first - v % (p.nv / G) * W, K,
                                 tile.sums + v * W, p.nv * W,
                                 from + (v + 1 < p.nv ? first_row(p, v + 1) : first_row(next, 0)) * K);
      });
      receive(j, tall, tile.sums);
    });
  }
};
