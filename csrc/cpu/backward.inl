// One layer backward, one direction at a time, in chunks of steps from the last to the first. A chunk's time loop
// leaves the derivatives of its gates in a buffer that the cache holds; from there one product adds to dW_ih, one to
// dW_hh (their sums run over all chunks, gradients.inl) and one gives dx. The team meets once per chunk.

template <Cell CELL, class S>
class BackwardKernel {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  using Planes = GatePlanes<CELL, X, C>;
  static constexpr int G = gates_of(CELL), W = width<C>;

  const Backward& L;
  const int d;
  const Steps steps;
  const Columns<C, kWide> state, hidden, inputs;  // P, H and I columns
  const bool project, direct, alone;
  const bool once_hh, once_ih;  // the weights take part in one product: packed panel by panel as it goes
  const int halves;             // of the chunks' buffers
  const Planes planes;
  const int64_t Hp, projected_ld, chunk_rows, own_size;

  X *w_hh, *w_ih, *w_hr;  // panels: [G*plane] by P, [G*plane] by I, [P] by H
  X* own;                 // [ranks, own_size]: the panel at hand of weights that are used once; gradients transposed
  Chunk<X> chunks[2];     // take turns
  C* carry;               // [N, Hp]: dc, or GRU's direct part of dh
  S** row_out;            // [ranks, chunk_rows]
  Barrier barrier;
  WeightGradients<CELL, S> weight_gradients;

 public:
  BackwardKernel(const Backward& layer, int direction, int64_t all_rows)
      : L(layer),
        d(direction),
        steps{layer, direction == 1},
        state{layer.P},
        hidden{layer.H},
        inputs{layer.I},
        project(layer.weights[direction].w_hr != nullptr),
        direct(few_rows_backward<X>(layer, all_rows)),
        alone(layer.N == 1),
        once_hh(layer.T == 1),
        once_ih(rows_at_once(layer, all_rows) >= all_rows),
        halves(once_ih ? 1 : 2),
        planes(layer.H),
        Hp(padded(layer.H)),
        projected_ld(depth<X>(padded(layer.P))),
        chunk_rows(rows_at_once(layer, all_rows)),
        own_size(elements_of_own()),
        weight_gradients(layer, direction, projected_ld, chunk_rows) {}

  // The depth of one weight gradient product: deep enough to be worth reading and writing its sums once, chunks of
  // nearly equal depth. It must not depend on the number of threads, or the sums would.
  static int64_t rows_at_once(const Layer& layer, int64_t all_rows) {
    const int64_t most = 384 + layer.N, chunks = (all_rows + most - 1) / most;
    const int64_t rows = (all_rows + chunks - 1) / chunks + layer.N - 1;  // whole steps
    return rows < all_rows ? rows : all_rows;
  }

  int64_t elements_of_own() const {
    const int64_t panel = once_ih && !direct ? kWide * W * depth<X>(G * planes.plane) : 0,
                  transposed = WeightGradients<CELL, S>::transposed(L, chunk_rows);
    return panel > transposed ? panel : transposed;
  }

  void carve(Carver& memory) {
    const int ranks = L.threads;
    w_hh = memory.take<X>(direct || once_hh ? 0 : state.template packed<X>(G * planes.plane));
    w_ih = memory.take<X>(direct || once_ih || !L.grad_input.data ? 0 : inputs.template packed<X>(G * planes.plane));
    own = memory.take<X>(ranks * own_size);
    w_hr = memory.take<X>(project ? hidden.template packed<X>(L.P) : 0);
    carry = memory.take<C>(L.N * Hp);
    for (int half = 0; half < halves; ++half)
      chunks[half] = {memory.take<X>(chunk_rows * planes.ld + WeightGradients<CELL, S>::kCut),
                      memory.take<X>(project ? chunk_rows * projected_ld : 0),
                      memory.take<X>(project ? chunk_rows * Hp : 0)};
    row_out = memory.take<S*>(ranks * chunk_rows);
    weight_gradients.carve(memory, halves);
  }

  static void body(void* self, int rank, int size) { static_cast<BackwardKernel*>(self)->run(rank, size); }

 private:
  void run(int rank, int size) {
    [[maybe_unused]] Products<X> scope;
    prepare(rank, size);
    barrier.wait(size);
    const Share share(rank, size, by_rows(size));
    int half = 0;
    const X* after = nullptr;  // dgates of the step after the one at hand
    for (int64_t end = L.T; end > 0;) {
      const int64_t begin = steps.chunk_begin(end, chunk_rows);
      const int64_t count = steps.count(begin, end, 0, L.N);
      const auto [j0, j1] = share.sequences(steps, begin, end);
      const Chunk<X>& chunk = chunks[half];
      if (L.want_weights)
        weight_gradients.pack_operands(half, begin, count, rank, size,
                                       [&](int64_t s, int64_t j) { return before(L.output, L.h0, L.P, s, j); });
      int64_t row = count;  // of the chunk, the first one of the step
      for (int64_t s = end - 1; s >= begin; --s) {
        row -= steps.active(s);
        step(s, chunk, row, after, j0, j1, rank, share);
        after = chunk.dgates + row * planes.ld;
      }
      if (begin == 0 && (L.grad_h0 || L.grad_c0)) step(-1, chunk, 0, after, j0, j1, rank, share);
      barrier.wait(size);
      if (L.grad_input.data) input_gradient(chunk, begin, count, rank, size);
      if (L.want_weights)
        weight_gradients.add(chunk, half, count, end == L.T, own + rank * own_size, rank, size, barrier);
      half = halves - 1 - half;
      end = begin;
    }
    if (WeightGradients<CELL, S>::kNarrow && L.want_weights) {
      barrier.wait(size);
      weight_gradients.write_results(rank, size);
    }
  }

  // Whether a team divides the rows of the batch and not the hidden units. What threads exchange is G times forward's.
  bool by_rows(int size) const {
    const int64_t bytes = state.template packed<X>(G * planes.plane) * sizeof(X);
    return L.T > 1 && divides_rows<X>(L.N, size, bytes, state.panels(), on_tiles<X> ? 0.25 : 0.12);
  }

  // Packs the weights, each thread its share.
  void prepare(int rank, int size) {
    const S *ih = static_cast<const S*>(L.weights[d].w_ih), *hh = static_cast<const S*>(L.weights[d].w_hh),
            *hr = static_cast<const S*>(L.weights[d].w_hr);
    const int64_t K = G * planes.plane, all = words<X>(K);
    for (int64_t k = part(all, rank, size); !direct && !once_hh && k < part(all, rank + 1, size); ++k) {
      pack_word(w_hh, state, K, k, rows_by_plane(hh, L.P, 0, Planes::among_hidden));
      if (L.grad_input.data && !once_ih)
        pack_word(w_ih, inputs, planes.lead + K, k, rows_by_plane(ih, L.I, planes.lead, Planes::of_input));
    }
    if (project)
      for (int64_t k = part(words<X>(L.P), rank, size); k < part(words<X>(L.P), rank + 1, size); ++k)
        pack_word(w_hr, hidden, L.P, k, [&](int64_t row) { return hr + row * L.H; });
    auto zeros = [](X* row, int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) row[k] = X{};
    };
    for (int half = 0; half < halves; ++half)
      for (int64_t row = part(chunk_rows, rank, size); row < part(chunk_rows, rank + 1, size); ++row) {
        X* const dgates = chunks[half].dgates + row * planes.ld;
        zeros(dgates, 0, planes.lead);
        for (int which = 0; which < Planes::count; ++which)
          zeros(dgates, planes.column(which) + L.H, planes.column(which + 1));
        if (on_tiles<X>) zeros(dgates, planes.column(Planes::count), planes.ld);
        if (project) zeros(chunks[half].dprojected + row * projected_ld, L.P, projected_ld);
      }
  }

  // Where the row of w [G*H, ld] lies that belongs to place `row` behind `lead` in dgates, null for the padding.
  template <class P>
  auto rows_by_plane(const S* w, int64_t ld, int64_t lead, P&& plane_of) const {
    return [this, w, ld, lead, plane_of](int64_t row) {
      if (row < lead) return static_cast<const S*>(nullptr);
      const int64_t in = (row - lead) / planes.plane, unit = row - lead - in * planes.plane;
      return unit < L.H ? w + (gate_in(in, plane_of) * L.H + unit) * ld : nullptr;
    };
  }
  template <class P>
  static int gate_in(int64_t plane, P&& plane_of) {
    int gate = 0;
    for (int g = 0; g < G; ++g)
      if (plane_of(g) == plane) gate = g;
    return gate;
  }

  // The panel p of w [G*H, ld], in the order of dgates.
  template <class P>
  void pack_gates(X* to, const Panel& p, const S* w, int64_t ld, int64_t lead, P&& plane_of) const {
    const int64_t K = lead + G * planes.plane;
    int64_t word = 0;
    for (int64_t in = 0; in < G; ++in) {
      const S* gate = w + gate_in(in, plane_of) * L.H * ld;
      const int64_t first = lead + in * planes.plane;
      for (; word * per_word<X> < first + planes.plane; ++word)
        pack_word<X, C>(to, p, ld, K, word, [&](int64_t row) {
          return row >= first && row < first + L.H ? gate + (row - first) * ld : nullptr;
        });
    }
    for (; word < words<X>(K); ++word) pack_word<X, C>(to, p, ld, K, word, [](int64_t) -> const S* { return nullptr; });
  }

  bool is_reset(int64_t s, int64_t j) const { return L.resets.data && *at<const bool>(L.resets, L, steps.t(s), j); }

  // The row of `view` (output or cells) that was the state before step s, `initial` before the first step, null where
  // a reset made it zero.
  INLINE const S* before(const View& view, const void* initial, int64_t columns, int64_t s, int64_t j) const {
    if (is_reset(s, j)) return nullptr;
    if (j >= steps.begun(s)) return static_cast<const S*>(initial) + (d * L.N + L.order[j]) * columns;
    return at<const S>(view, L, steps.t(s - 1), j) + d * columns;
  }

  // Step s (or -1: only what reaches the initial state) for the rows j0..j1 and a member's share of the units.
  void step(int64_t s, const Chunk<X>& chunk, int64_t row, const X* after, int64_t j0, int64_t j1, int rank,
            const Share& share) {
    const int64_t now = steps.active(s), later = steps.active(s + 1);
    auto low = [&](int64_t j) { return j < j0 ? j0 : j; };
    auto high = [&](int64_t j) { return j > j1 ? j1 : j; };
    auto after_row = [&](int64_t j) { return after + planes.column(Planes::first_hidden) + j * planes.ld; };
    auto share_of = [&](int64_t panels, auto&& f) {  // f(panel, the one after it)
      const int64_t p0 = part(panels, share.member, share.members), p1 = part(panels, share.member + 1, share.members);
      for (int64_t i = p0; i < p1; ++i)
        s & 1 ? f(p0 + p1 - 1 - i, p0 + p1 - 1 - (i + 1 < p1 ? i + 1 : i)) : f(i, i + 1 < p1 ? i + 1 : i);
    };
    share_of(state.panels(), [&](int64_t i, int64_t next) {
      const Panel p = state.panel(i);
      auto receive = [&](int64_t j, int64_t column, Vec<C> sum) {
        const Vec<C> dh = incoming(sum, s, j, column);
        if (project)
          store(chunk.dprojected + (row + j) * projected_ld + column, dh, L.P - column);
        else
          cell(dh, s, chunk, row + j, j, column);
      };
      const int64_t both = now < later ? now : later;
      multiply_gates(alone, once_hh, rank, low(0), high(both), w_hh, L.weights[d].w_hh, L.P, 0, Planes::among_hidden, p,
                     state.panel(next), after_row, receive);
      // A sequence that ends here has no step after this one, and one that begins after it has none before.
      for (int64_t j = low(both); j < high(now); ++j)
        for (int v = 0; v < p.nv; ++v) receive(j, p.first + v * W, Vec<C>{});
      multiply_gates(alone, once_hh, rank, low(both), high(later), w_hh, L.weights[d].w_hh, L.P, 0,
                     Planes::among_hidden, p, state.panel(next), after_row,
                     [&](int64_t j, int64_t column, Vec<C> sum) { to_h0(sum, s, j, column); });
    });
    if (project) {
      barrier.wait(share.members);
      auto row_of = [&](int64_t j) { return chunk.dprojected + (row + j) * projected_ld; };
      share_of(hidden.panels(), [&](int64_t i, int64_t next) {
        const Panel p = hidden.panel(i);
        multiply_rows(alone, low(0), high(now), L.P, w_hr + p.offset<X>(L.P),
                      w_hr + hidden.panel(next).template offset<X>(L.P), p, row_of,
                      [&](int64_t j, int64_t column, Vec<C> sum) { cell(sum, s, chunk, row + j, j, column); });
      });
    }
    if (CELL == Cell::lstm && L.grad_c0)
      share_of(hidden.vectors(), [&](int64_t v, int64_t) {
        for (int64_t j = low(now); j < high(later); ++j) to_c0(s, j, v * W);
      });
    barrier.wait(share.members);
  }

  // receive(j, column, sum) for the product of rows a_row(j) with a panel, K deep.
  template <class A, class F>
  INLINE void multiply_rows(bool alone, int64_t j0, int64_t j1, int64_t K, const X* panel, const X* next,
                            const Panel& p, A&& a_row, F&& receive) {
    multiply_panel<C>(alone, j0, j1, p.nv, K, panel, next, a_row, [&](int64_t j, int tall, const C* sums) {
      for (int r = 0; r < tall; ++r)
        for (int v = 0; v < p.nv; ++v, sums += W) receive(j + r, p.first + v * W, load(sums));
    });
  }

  // The same for rows of gate gradients and the weights w [G*H, ld] of all gates: packed, to be packed, or as they lie.
  // Gate g is in plane plane_of(g) behind `lead` columns of a row.
  template <class P, class A, class F>
  INLINE void multiply_gates(bool alone, bool once, int rank, int64_t j0, int64_t j1, const X* packed, const void* w,
                             int64_t ld, int64_t lead, P&& plane_of, const Panel& p, const Panel& next, A&& a_row,
                             F&& receive) {
    if (j1 <= j0) return;
    if (!direct) {
      const int64_t K = lead + G * planes.plane;
      const bool kept = ld * K * int64_t(sizeof(X)) <= kKept;
      const X *panel = packed + p.offset<X>(K), *after = kept ? panel : packed + next.offset<X>(K);
      if (once) {
        X* to = own + rank * own_size;
        pack_gates(to, p, static_cast<const S*>(w), ld, lead, plane_of);
        panel = after = to;
      }
      return multiply_rows(alone, j0, j1, K, panel, after, p, a_row, receive);
    }
    for_tiles(j0, j1, kRowsAtOnce, [&](int64_t j, int tall) {
      C sums[kRowsAtOnce * kWide * W] = {};
      with_rows(tall, [&](auto R) {
        for (int g = 0; g < G; ++g) {
          const X* a[R.value];
          for (int r = 0; r < R.value; ++r) a[r] = a_row(j + r) + lead + plane_of(g) * planes.plane;
          add_times_columns<R.value, C>(a, static_cast<const S*>(w) + g * L.H * ld + p.first, ld, L.H, ld - p.first,
                                        sums);
        }
      });
      for (int r = 0; r < tall; ++r)
        for (int v = 0; v < p.nv; ++v) receive(j + r, p.first + v * W, load(sums + (r * kWide + v) * W));
    });
  }

  bool cut(int64_t s, int64_t j) const { return j < steps.active(s + 1) && is_reset(s + 1, j); }

  // dh (before the cell's own parts): what came back through the product, from the output, and from h_n.
  INLINE Vec<C> incoming(Vec<C> sum, int64_t s, int64_t j, int64_t column) const {
    const int64_t n = L.P - column;
    if (cut(s, j)) sum = Vec<C>{};
    if (L.grad_output.data) sum += load(at<const S>(L.grad_output, L, steps.t(s), j) + d * L.P + column, n);
    if (L.grad_h_n && j >= steps.ended(s))
      sum += load(static_cast<const S*>(L.grad_h_n) + (d * L.N + L.order[j]) * L.P + column, n);
    return sum;
  }

  INLINE void to_h0(Vec<C> sum, int64_t s, int64_t j, int64_t column) {
    if (!L.grad_h0) return;
    if (CELL == Cell::gru) sum += load(carry + j * Hp + column);
    if (cut(s, j)) sum = Vec<C>{};
    store(static_cast<S*>(L.grad_h0) + (d * L.N + L.order[j]) * L.P + column, sum, L.P - column);
  }

  INLINE void to_c0(int64_t s, int64_t j, int64_t column) {
    Vec<C> dc = cut(s, j) ? Vec<C>{} : load(carry + j * Hp + column);
    store(static_cast<S*>(L.grad_c0) + (d * L.N + L.order[j]) * L.H + column, dc, L.H - column);
  }

  // The cell's derivative for one register of units; `row` is the chunk's.
  INLINE void cell(Vec<C> dh, int64_t s, const Chunk<X>& chunk, int64_t row, int64_t j, int64_t unit) {
    const int64_t t = steps.t(s), n = L.H - unit;
    const bool ends = j >= steps.ended(s), keep = !ends && !cut(s, j);
    C* carried = carry + j * Hp + unit;
    X* to = chunk.dgates + row * planes.ld + planes.lead + unit;
    const S* saved = saved_of(CELL) ? at<const S>(L.gates, L, t, j) + d * L.gates_direction + unit : nullptr;
    auto put = [&](int which, Vec<C> v) { store(to + which * planes.plane, v, n); };
    auto state_before = [&](const View& view, const void* initial) {
      const S* p = before(view, initial, L.H, s, j);
      return p ? load(p + unit, n) : Vec<C>{};
    };
    if constexpr (CELL == Cell::lstm) {
      Vec<C> dc = keep ? load(carried) : Vec<C>{}, di, df, dg, d_o;
      if (ends && L.grad_c_n) dc = load(static_cast<const S*>(L.grad_c_n) + (d * L.N + L.order[j]) * L.H + unit, n);
      if (L.grad_cells.data) dc += load(at<const S>(L.grad_cells, L, t, j) + d * L.H + unit, n);
      Vec<C> o = load(saved + 3 * Hp), tanh_c = tanh(load(at<const S>(L.cells, L, t, j) + d * L.H + unit, n));
      cells::lstm_backward<Vec<C>>(load(saved), load(saved + Hp), load(saved + 2 * Hp), o, state_before(L.cells, L.c0),
                                   tanh_c, dh, dc, di, df, dg, d_o);
      put(0, di);
      put(1, df);
      put(2, dg);
      put(3, d_o);
      store(carried, dc);
      if (project && L.want_weights) store(chunk.full + row * Hp + unit, o * tanh_c);
    } else if constexpr (CELL == Cell::gru) {
      if (keep) dh += load(carried);
      Vec<C> dr, dz, dn, dn_h, direct;
      cells::gru_backward<Vec<C>>(load(saved), load(saved + Hp), load(saved + 2 * Hp), load(saved + 3 * Hp),
                                  state_before(L.output, L.h0), dh, dr, dz, dn, dn_h, direct);
      put(Planes::of_input(0), dr);
      put(Planes::of_input(1), dz);
      put(Planes::of_input(2), dn);
      put(Planes::of_hidden(2), dn_h);
      store(carried, direct);
    } else {
      Vec<C> h = load(at<const S>(L.output, L, t, j) + d * L.P + unit, n);
      put(0, cells::rnn_backward<CELL == Cell::rnn_relu, Vec<C>>(h, dh));
    }
  }

  // dx = dgates W_ih for the chunk; the second direction adds to the first. The team shares its rows, or its columns
  // where those take packing.
  void input_gradient(const Chunk<X>& chunk, int64_t begin, int64_t count, int rank, int size) {
    const bool by_columns = once_ih && inputs.panels() >= size;
    const int64_t r0 = by_columns ? 0 : part(count, rank, size), r1 = by_columns ? count : part(count, rank + 1, size);
    const int64_t i0 = by_columns ? part(inputs.panels(), rank, size) : 0,
                  i1 = by_columns ? part(inputs.panels(), rank + 1, size) : inputs.panels();
    auto row_of = [&](int64_t row) { return chunk.dgates + row * planes.ld; };
    S** out = row_out + rank * chunk_rows;
    steps.for_rows(begin, r0, r1, 0, L.N,
                   [&](int64_t row, int64_t s, int64_t j) { out[row] = at<S>(L.grad_input, L, steps.t(s), j); });
    for (int64_t i = i0; i < i1; ++i)
      multiply_gates(false, once_ih, rank, r0, r1, w_ih, L.weights[d].w_ih, L.I, planes.lead, Planes::of_input,
                     inputs.panel(i), inputs.panel(i + 1 < i1 ? i + 1 : i0), row_of,
                     [&](int64_t row, int64_t column, Vec<C> sum) {
                       S* to = out[row] + column;
                       if (d) sum += load(to, L.I - column);
                       store(to, sum, L.I - column);
                     });
  }
};

template <Cell CELL, class S>
void backward_cell(const Backward& layer) {
  const int64_t rows = count_rows(layer);
  Backward used = layer;
  used.threads = useful_threads(layer, rows, 2);
  for (int d = 0; d < layer.D; ++d) {
    BackwardKernel<CELL, S> kernel(used, d, rows);
    Carver size(nullptr);
    kernel.carve(size);
    Workspace workspace(size.used());
    Carver memory(workspace.data());
    kernel.carve(memory);
    run_team(used.threads, BackwardKernel<CELL, S>::body, &kernel);
  }
}
