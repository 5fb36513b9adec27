// One layer forward, one direction at a time: the input product for as many steps at once as the cache holds, then
// those steps one by one, each a product with the packed recurrent weights whose sums never leave the registers
// before the cell has turned them into h and c.

template <Cell CELL, class S>
class ForwardKernel {
  using C = typename ComputeOf<S>::type;
  static constexpr int G = gates_of(CELL);
  static constexpr bool kStaged = sizeof(S) != sizeof(C);

  const Forward& L;
  const int d;
  const Steps steps;
  const UnitPanels<CELL, C> units;
  const Columns<C, kWide> projected;
  const bool project;
  const int64_t Hp, gates_ld, h_ld, chunk_rows;

  C *w_ih, *w_hh, *w_hr;  // panels
  C *bias, *bias_hn;      // [G*Hp], [Hp]: what the input product adds; GRU's b_hn, which the cell adds
  C *h[2], *c, *full;     // [N, h_ld] twice, [N, Hp], [N, Hp] before projection: the state of two steps
  C* zeros;               // a row of zeros: the state after a reset
  C* gates;               // [chunk_rows, gates_ld]: x W_ih^T + b
  C* staged;              // [ranks, chunk_rows, I]: input rows as C
  const C** rows;         // [ranks, chunk_rows]
  C** outs;               // [ranks, chunk_rows]
  Barrier barrier;

 public:
  ForwardKernel(const Forward& layer, int direction, int64_t all_rows)
      : L(layer),
        d(direction),
        steps{layer, direction == 1},
        units{layer.H},
        projected{layer.P},
        project(layer.weights[direction].w_hr != nullptr),
        Hp(padded(layer.H)),
        gates_ld(spread<C>(G * padded(layer.H))),
        h_ld(spread<C>(padded(layer.P))),
        chunk_rows(rows_at_once(layer, all_rows)) {}

  // Rows whose gates fit the second-level cache beside the weights, but enough to make use of each panel.
  static int64_t rows_at_once(const Layer& layer, int64_t all_rows) {
    int64_t rows = (int64_t(1) << 20) / (G * padded(layer.H) * sizeof(C));
    rows = rows < 96 ? 96 : rows > 768 ? 768 : rows;
    rows = rows * layer.threads + layer.N;
    return rows < all_rows ? rows : all_rows;
  }

  void carve(Carver& memory) {
    const int ranks = L.threads;
    w_ih = memory.take<C>(units.packed(L.I));
    w_hh = memory.take<C>(units.packed(L.P));
    w_hr = memory.take<C>(project ? projected.packed(L.H) : 0);
    bias = memory.take<C>(G * Hp);
    bias_hn = memory.take<C>(Hp);
    h[0] = memory.take<C>(L.N * h_ld);
    h[1] = memory.take<C>(L.N * h_ld);
    c = memory.take<C>(CELL == Cell::lstm ? L.N * Hp : 0);
    full = memory.take<C>(project ? L.N * Hp : 0);
    zeros = memory.take<C>(Hp);
    gates = memory.take<C>(chunk_rows * gates_ld);
    staged = memory.take<C>(kStaged ? ranks * chunk_rows * L.I : 0);
    rows = memory.take<const C*>(ranks * chunk_rows);
    outs = memory.take<C*>(ranks * chunk_rows);
  }

  static void body(void* self, int rank, int size) { static_cast<ForwardKernel*>(self)->run(rank, size); }

 private:
  void run(int rank, int size) {
    prepare(rank, size);
    barrier.wait(size);
    Share share(L, rank, size);
    const int64_t j0 = share.first_row(L, share.group), j1 = share.first_row(L, share.group + 1);
    const int64_t p0 = part(units.panels(), share.member, share.members),
                  p1 = part(units.panels(), share.member + 1, share.members);
    for (int64_t s = 0; s < L.T;) {
      const int64_t end = steps.chunk_end(s, chunk_rows);
      multiply_inputs(rank, s, end, j0, j1, p0, p1);
      int64_t row = 0;  // of the chunk's gates
      for (; s < end; ++s) {
        const int64_t n = steps.active(s), last = n < j1 ? n : j1;
        if (s & 1)
          for (int64_t p = p1 - 1; p >= p0; --p) step(s, row, j0, last, p);
        else  // there and back, so that the panels at the turn are still in the cache
          for (int64_t p = p0; p < p1; ++p) step(s, row, j0, last, p);
        barrier.wait(share.members);
        if (project) {
          const int64_t q0 = part(projected.panels(), share.member, share.members),
                        q1 = part(projected.panels(), share.member + 1, share.members);
          for (int64_t q = q0; q < q1; ++q) project_step(s, j0, last, q);
          barrier.wait(share.members);
        }
        row += n;
      }
    }
  }

  // Packs the weights and lays the initial state, each thread its share.
  void prepare(int rank, int size) {
    const Weights& w = L.weights[d];
    const S *ih = static_cast<const S*>(w.w_ih), *hh = static_cast<const S*>(w.w_hh),
            *hr = static_cast<const S*>(w.w_hr), *b_ih = static_cast<const S*>(w.b_ih),
            *b_hh = static_cast<const S*>(w.b_hh);
    for (int64_t p = part(units.panels(), rank, size); p < part(units.panels(), rank + 1, size); ++p) {
      units.pack(w_ih, p, ih, L.I);
      units.pack(w_hh, p, hh, L.P);
    }
    if (project)
      for (int64_t q = part(projected.panels(), rank, size); q < part(projected.panels(), rank + 1, size); ++q) {
        const Panel p = projected.panel(q, L.H);
        for (int v = 0; v < p.nv; ++v) {
          const int64_t row = p.first + v * width<C>;
          pack_transposed<C>(w_hr + p.offset + v * width<C>, p.nv * width<C>, hr + row * L.H, L.H, L.P - row, L.H);
        }
      }
    if (rank == 0) {
      auto value = [&](const S* b, int64_t i) { return b ? load(b + i, 1)[0] : C(0); };
      for (int g = 0; g < G; ++g)
        for (int64_t u = 0; u < Hp; ++u) {
          const bool inside = u < L.H, apart = CELL == Cell::gru && g == 2;
          const int64_t i = g * L.H + u;
          bias[g * Hp + u] = inside ? value(b_ih, i) + (apart ? C(0) : value(b_hh, i)) : C(0);
          if (apart) bias_hn[u] = inside ? value(b_hh, i) : C(0);
        }
      for (int64_t u = 0; u < Hp; ++u) zeros[u] = 0;
    }
    for (int64_t j = part(L.N, rank, size); j < part(L.N, rank + 1, size); ++j) {
      const S* h0 = static_cast<const S*>(L.h0) + (d * L.N + L.order[j]) * L.P;
      for (int64_t u = 0; u < L.P; u += width<C>) {
        Vec<C> v = load(h0 + u, L.P - u);
        store(h[0] + j * h_ld + u, v);
        store(h[1] + j * h_ld + u, v);
      }
      if constexpr (CELL == Cell::lstm) {
        const S* c0 = static_cast<const S*>(L.c0) + (d * L.N + L.order[j]) * L.H;
        for (int64_t u = 0; u < L.H; u += width<C>) store(c + j * Hp + u, load(c0 + u, L.H - u));
      }
    }
  }

  // gates = x W_ih^T + bias for the rows j0..j1 and the panels p0..p1 of the steps [s, end).
  void multiply_inputs(int rank, int64_t s, int64_t end, int64_t j0, int64_t j1, int64_t p0, int64_t p1) {
    const C** in = rows + rank * chunk_rows;
    C** out = outs + rank * chunk_rows;
    int64_t count = 0, base = 0;
    for (; s < end; base += steps.active(s), ++s) {
      const int64_t t = steps.t(s), last = steps.active(s) < j1 ? steps.active(s) : j1;
      for (int64_t j = j0; j < last; ++j, ++count) {
        const S* x = at<const S>(L.input, L, t, j);
        if constexpr (kStaged) {
          C* copy = staged + (rank * chunk_rows + count) * L.I;
          for (int64_t k = 0; k < L.I; k += width<C>) store(copy + k, load(x + k, L.I - k), L.I - k);
          in[count] = copy;
        } else {
          in[count] = x;
        }
        out[count] = gates + (base + j) * gates_ld;
      }
    }
    for (int64_t i = p0; i < p1; ++i) {
      const Panel p = units.panel(i, L.I);
      Vec<C> add[kWide > G ? kWide : G];
      for (int v = 0; v < p.nv; ++v) add[v] = load(bias + column_of(p, v));
      for_tiles(0, count, tile_rows(p.nv), [&](int64_t row, int tall) {
        Tile<C> tile;
        multiply(tall, p.nv, in + row, w_ih + p.offset, L.I, tile);
        for (int r = 0; r < tall; ++r)
          for (int v = 0; v < p.nv; ++v)
            store(out[row + r] + column_of(p, v), load(tile.sums + (r * p.nv + v) * width<C>) + add[v]);
      });
    }
  }

  // Where register v of a panel of gates belongs in a row of gates.
  int64_t column_of(const Panel& p, int v) const {
    const int across = p.nv / G;
    return v / across * Hp + p.first + v % across * width<C>;
  }

  bool is_reset(int64_t t, int64_t j) const { return L.resets.data && *at<const bool>(L.resets, L, t, j); }

  // Step s for the rows j0..j1 and one panel of units; `row` is the step's first row in the chunk's gates.
  void step(int64_t s, int64_t row, int64_t j0, int64_t j1, int64_t panel) {
    const int64_t t = steps.t(s), ended = steps.ended(s);
    const C* before = h[s & 1];
    const Panel p = units.panel(panel, L.P);
    for_tiles(j0, j1, tile_rows(p.nv), [&](int64_t j, int tall) {
      const C* a[kMaxRows];
      for (int r = 0; r < tall; ++r) a[r] = is_reset(t, j + r) ? zeros : before + (j + r) * h_ld;
      Tile<C> tile;
      multiply(tall, p.nv, a, w_hh + p.offset, L.P, tile);
      for (int r = 0; r < tall; ++r)
        for (int v = 0; v < p.nv / G; ++v) {
          Vec<C> pre[G];
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) pre[g] = load(tile.sums + (r * p.nv + g * (p.nv / G) + v) * width<C>);
          finish(pre, a[r], s, t, j + r, gates + (row + j + r) * gates_ld, p.first + v * width<C>, j + r >= ended);
        }
    });
  }

  // The cell for one register of units at `unit` of sequence j; pre are the sums of the recurrent product.
  INLINE void finish(Vec<C> (&pre)[G], const C* h_before, int64_t s, int64_t t, int64_t j, const C* x_gates,
                     int64_t unit, bool last) {
    const int64_t n = L.H - unit;
    S* saved = L.gates.data ? at<S>(L.gates, L, t, j) + d * L.gates_direction + unit : nullptr;
    Vec<C> h_now;
    if constexpr (CELL == Cell::lstm) {
      C* state = c + j * Hp + unit;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) pre[g] += load(x_gates + g * Hp + unit);
      Vec<C> c_now;
      cells::lstm_forward(pre[0], pre[1], pre[2], pre[3], load(h_before == zeros ? zeros : state), c_now, h_now);
      store(state, c_now);
      if (L.cells.data) store(at<S>(L.cells, L, t, j) + d * L.H + unit, c_now, n);
      if (last) store(static_cast<S*>(L.c_n) + (d * L.N + L.order[j]) * L.H + unit, c_now, n);
      if (saved) {
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) store(saved + g * Hp, pre[g]);
      }
    } else if constexpr (CELL == Cell::gru) {
      Vec<C> r = pre[0] + load(x_gates + unit), z = pre[1] + load(x_gates + Hp + unit),
             new_ = load(x_gates + 2 * Hp + unit), n_h = pre[2] + load(bias_hn + unit);
      cells::gru_forward(r, z, new_, n_h, load(h_before + unit), h_now);
      if (saved) {
        store(saved, r);
        store(saved + Hp, z);
        store(saved + 2 * Hp, new_);
        store(saved + 3 * Hp, n_h);
      }
    } else {
      h_now = cells::rnn_forward<CELL == Cell::rnn_relu>(Vec<C>(pre[0] + load(x_gates + unit)));
    }
    if (project)
      store(full + j * Hp + unit, h_now);
    else
      emit(h_now, s, t, j, unit, n, last);
  }

  // A register of the step's output: to the user, to the next step, and to h_n if it is the sequence's last.
  INLINE void emit(Vec<C> value, int64_t s, int64_t t, int64_t j, int64_t column, int64_t n, bool last) {
    store(at<S>(L.output, L, t, j) + d * L.P + column, value, n);
    store(h[(s + 1) & 1] + j * h_ld + column, rounded<S, C>(value));
    if (last) store(static_cast<S*>(L.h_n) + (d * L.N + L.order[j]) * L.P + column, value, n);
  }

  void project_step(int64_t s, int64_t j0, int64_t j1, int64_t panel) {
    const int64_t t = steps.t(s), ended = steps.ended(s);
    const Panel p = projected.panel(panel, L.H);
    for_tiles(j0, j1, tile_rows(p.nv), [&](int64_t j, int tall) {
      const C* a[kMaxRows];
      for (int r = 0; r < tall; ++r) a[r] = full + (j + r) * Hp;
      Tile<C> tile;
      multiply(tall, p.nv, a, w_hr + p.offset, L.H, tile);
      for (int r = 0; r < tall; ++r)
        for (int v = 0; v < p.nv; ++v) {
          const int64_t column = p.first + v * width<C>;
          emit(load(tile.sums + (r * p.nv + v) * width<C>), s, t, j + r, column, L.P - column, j + r >= ended);
        }
    });
  }
};

template <Cell CELL, class S>
void forward_cell(const Forward& layer) {
  const int64_t rows = count_rows(layer);
  Forward used = layer;
  used.threads = useful_threads(layer, rows);
  for (int d = 0; d < layer.D; ++d) {
    ForwardKernel<CELL, S> kernel(used, d, rows);
    Carver size(nullptr);
    kernel.carve(size);
    Workspace workspace(size.used());
    Carver memory(workspace.data());
    kernel.carve(memory);
    run_team(used.threads, ForwardKernel<CELL, S>::body, &kernel);
  }
}
