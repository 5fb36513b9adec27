// One layer backward, one direction at a time, in chunks of steps from the last to the first. A chunk's time loop
// leaves the derivatives of its gates in a buffer that the cache holds; from there one product adds to dW_ih, one to
// dW_hh (their sums run over all chunks) and one gives dx. The team meets once per chunk.

template <Cell CELL, class S>
class BackwardKernel {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  static constexpr int G = gates_of(CELL), W = width<C>, down = kDown<X>;
  static constexpr bool kNarrow = sizeof(S) != sizeof(C);  // the weight gradients' sums are not in the result's type
  // dgates of a row lie in planes of `plane` columns, whole registers. GRU: n r z n_h, so that the input's three and
  // the recurrent three are each contiguous. Everyone else: the gates in their order.
  static constexpr int kPlanes = CELL == Cell::gru ? 4 : G;
  static constexpr int kHiddenPlane = CELL == Cell::gru ? 1 : 0;
  static constexpr int input_plane(int gate) { return CELL == Cell::gru ? (gate + 1) % 3 : gate; }
  static constexpr int hidden_plane(int gate) { return gate + kHiddenPlane; }
  static constexpr int hidden_gate(int gate) { return gate; }  // among the recurrent planes

  const Backward& L;
  const int d;
  const Steps steps;
  const Columns<C, kWide> state, hidden, inputs;     // P, H and I columns
  const Columns<C, kAcross<X>> by_x, by_h, by_full;  // the same as columns of the weight gradients
  const bool project, direct, once;
  const int64_t Hp, plane, dgates_ld, projected_ld, chunk_rows;

  X *w_hh, *w_ih, *w_hr;                          // panels: [G*plane] by P, [G*plane] by I, [P] by H
  X* own;                                         // [ranks] instead, of weights that are used once: the panel at hand
  X* dgates[2];                                   // [chunk_rows, dgates_ld], chunks take turns
  X *dprojected[2], *full[2];                     // [chunk_rows, projected_ld], [chunk_rows, Hp]: projection only
  C* carry;                                       // [N, Hp]: dc, or GRU's direct part of dh
  X *packed_x[2], *packed_h[2], *packed_full[2];  // a chunk's x, h_prev and h before projection as panels
  X* packed_gates;                                // [ranks, kRun tiles]: gradients transposed
  C* sums[5];   // w_ih w_hh b_ih b_hh w_hr: running sums, the result itself where types agree
  S** row_out;  // [ranks, chunk_rows]
  Barrier barrier;

 public:
  BackwardKernel(const Backward& layer, int direction, int64_t all_rows)
      : L(layer),
        d(direction),
        steps{layer, direction == 1},
        state{layer.P},
        hidden{layer.H},
        inputs{layer.I},
        by_x{layer.I},
        by_h{layer.P},
        by_full{layer.H},
        project(layer.weights[direction].w_hr != nullptr),
        direct(few_rows_backward<X>(layer, all_rows)),
        once(layer.T == 1),
        Hp(padded(layer.H)),
        plane(hidden.vectors() * W),
        dgates_ld(spread<X>(kHiddenPlane * plane + depth<X>((kPlanes - kHiddenPlane) * plane))),
        projected_ld(depth<X>(padded(layer.P))),
        chunk_rows(rows_at_once(layer, all_rows)) {}

  // The depth of one weight gradient product: deep enough to be worth reading and writing its sums once. It must not
  // depend on the number of threads, or the sums would.
  static int64_t rows_at_once(const Layer& layer, int64_t all_rows) {
    int64_t rows = 384 + layer.N;
    return rows < all_rows ? rows : all_rows;
  }

  void carve(Carver& memory) {
    const int ranks = L.threads;
    const bool want = L.want_weights;
    const bool pack = !direct && !once;
    w_hh = memory.take<X>(pack ? state.template packed<X>(G * plane) : 0);
    w_ih = memory.take<X>(pack && L.grad_input.data ? inputs.template packed<X>(G * plane) : 0);
    own = memory.take<X>(once && !direct ? ranks * kWide * W * depth<X>(G * plane) : 0);
    w_hr = memory.take<X>(project ? hidden.template packed<X>(L.P) : 0);
    carry = memory.take<C>(L.N * Hp);
    for (int half = 0; half < 2; ++half) {
      dgates[half] = memory.take<X>((chunk_rows + kSlack) * dgates_ld + down);  // the last tile down may be cut
      dprojected[half] = memory.take<X>(project ? (chunk_rows + kSlack) * projected_ld : 0);
      full[half] = memory.take<X>(project ? chunk_rows * Hp : 0);
      packed_x[half] = memory.take<X>(want ? by_x.template packed<X>(chunk_rows) : 0);
      packed_h[half] = memory.take<X>(want ? by_h.template packed<X>(chunk_rows) : 0);
      packed_full[half] = memory.take<X>(want && project ? by_full.template packed<X>(chunk_rows) : 0);
    }
    packed_gates = memory.take<X>(want ? ranks * kRun * down * depth<X>(chunk_rows) : 0);
    row_out = memory.take<S*>(ranks * chunk_rows);
    const WeightGrads& w = L.grad_weights[d];
    void* results[5] = {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr};
    for (int i = 0; i < 5; ++i)
      sums[i] = !results[i] ? nullptr : kNarrow ? memory.take<C>(size_of(i)) : static_cast<C*>(results[i]);
  }

  static void body(void* self, int rank, int size) { static_cast<BackwardKernel*>(self)->run(rank, size); }

 private:
  int64_t size_of(int i) const {
    const int64_t sizes[5] = {G * L.H * L.I, G * L.H * L.P, G * L.H, G * L.H, L.P * L.H};
    return sizes[i];
  }

  static constexpr int kRun = 64 / down;  // tiles of gradients transposed at a time

  void run(int rank, int size) {
    [[maybe_unused]] Products<X> scope;
    prepare(rank, size);
    barrier.wait(size);
    const Share share(L, rank, size);
    const int64_t j0 = share.first_row(L, share.group), j1 = share.first_row(L, share.group + 1);
    int half = 0;
    const X* after = nullptr;  // dgates of the step after the one at hand
    for (int64_t end = L.T; end > 0;) {
      const int64_t begin = steps.chunk_begin(end, chunk_rows);
      int64_t count = 0;
      for (int64_t s = begin; s < end; ++s) count += steps.active(s);
      if (L.want_weights) pack_operands(half, begin, count, rank, size);
      int64_t row = count;  // of the chunk, the first one of the step
      for (int64_t s = end - 1; s >= begin; --s) {
        row -= steps.active(s);
        step(s, half, row, after, j0, j1, rank, share);
        after = dgates[half] + row * dgates_ld;
      }
      if (begin == 0 && (L.grad_h0 || L.grad_c0)) step(-1, half, 0, after, j0, j1, rank, share);
      barrier.wait(size);
      if (L.grad_input.data) input_gradient(half, begin, count, rank, size);
      if (L.want_weights) weight_gradients(half, count, end == L.T, rank, size);
      half ^= 1;
      end = begin;
    }
    if (kNarrow && L.want_weights) {
      barrier.wait(size);
      write_results(rank, size);
    }
  }

  // Packs the weights, each thread its share.
  void prepare(int rank, int size) {
    const S *ih = static_cast<const S*>(L.weights[d].w_ih), *hh = static_cast<const S*>(L.weights[d].w_hh),
            *hr = static_cast<const S*>(L.weights[d].w_hr);
    const int64_t K = G * plane, all = words<X>(K);
    for (int64_t k = part(all, rank, size); !direct && !once && k < part(all, rank + 1, size); ++k) {
      pack_word(w_hh, state, K, k, rows_by_plane(hh, L.P, hidden_gate));
      if (L.grad_input.data) pack_word(w_ih, inputs, K, k, rows_by_plane(ih, L.I, input_plane));
    }
    if (project)
      for (int64_t k = part(words<X>(L.P), rank, size); k < part(words<X>(L.P), rank + 1, size); ++k)
        pack_word(w_hr, hidden, L.P, k, [&](int64_t row) { return hr + row * L.H; });
    // Where tiles read past a row's values, into what no one writes.
    for (int half = 0; on_tiles<X> && half < 2; ++half)
      for (int64_t row = part(chunk_rows, rank, size); row < part(chunk_rows, rank + 1, size); ++row) {
        for (int64_t k = kPlanes * plane; k < dgates_ld; ++k) dgates[half][row * dgates_ld + k] = X{};
        for (int64_t k = L.P; project && k < projected_ld; ++k) dprojected[half][row * projected_ld + k] = X{};
      }
  }

  // Where the row of w [G*H, ld] lies that belongs to place `row` in dgates, null for the planes' padding.
  template <class P>
  auto rows_by_plane(const S* w, int64_t ld, P&& plane_of) const {
    return [=](int64_t row) -> const S* {
      int gate = 0;
      for (int g = 0; g < G; ++g)
        if (plane_of(g) == row / plane) gate = g;
      return row % plane < L.H ? w + (gate * L.H + row % plane) * ld : nullptr;
    };
  }

  bool is_reset(int64_t s, int64_t j) const { return L.resets.data && *at<const bool>(L.resets, L, steps.t(s), j); }

  // The row of `view` (output or cells) that was the state before step s, `initial` before the first step, null where
  // a reset made it zero.
  INLINE const S* before(const View& view, const void* initial, int64_t columns, int64_t s, int64_t j) const {
    if (is_reset(s, j)) return nullptr;
    if (j >= steps.begun(s)) return static_cast<const S*>(initial) + (d * L.N + L.order[j]) * columns;
    return at<const S>(view, L, steps.t(s - 1), j) + d * columns;
  }

  // f(row of the chunk, step, sequence) for rows [from, to) of the steps from begin on.
  template <class F>
  INLINE void for_rows(int64_t begin, int64_t from, int64_t to, F&& f) const {
    int64_t s = begin, base = 0;
    for (int64_t row = from; row < to; ++row) {
      while (row >= base + steps.active(s)) base += steps.active(s++);
      f(row, s, row - base);
    }
  }

  // x and h_prev of a chunk as panels for the weight gradients.
  void pack_operands(int half, int64_t begin, int64_t count, int rank, int size) {
    const int64_t all = words<X>(count), w0 = part(all, rank, size), w1 = part(all, rank + 1, size);
    const S *x[per_word<X>], *h[per_word<X>];  // of the rows that make a word
    const int64_t last = w1 * per_word<X> < count ? w1 * per_word<X> : count;
    int64_t word = w0;
    auto pack = [&](int64_t row) {
      pack_word(packed_x[half], by_x, count, word, [&](int64_t k) { return x[k - row]; });
      pack_word(packed_h[half], by_h, count, word, [&](int64_t k) { return h[k - row]; });
      ++word;
    };
    for_rows(begin, w0 * per_word<X>, last, [&](int64_t row, int64_t s, int64_t j) {
      const int64_t i = row % per_word<X>;
      x[i] = at<const S>(L.input, L, steps.t(s), j);
      h[i] = before(L.output, L.h0, L.P, s, j);
      if (i + 1 == per_word<X> || row + 1 == count) pack(row - i);
    });
    while (word < w1) pack(word * per_word<X>);  // zeros
  }

  // Step s (or -1: only what reaches the initial state) for the rows j0..j1 and a member's share of the units.
  void step(int64_t s, int half, int64_t row, const X* after, int64_t j0, int64_t j1, int rank,
            const Share& share) {
    const int64_t now = steps.active(s), later = steps.active(s + 1);
    auto low = [&](int64_t j) { return j < j0 ? j0 : j; };
    auto high = [&](int64_t j) { return j > j1 ? j1 : j; };
    auto after_row = [&](int64_t j) { return after + kHiddenPlane * plane + j * dgates_ld; };
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
          store(dprojected[half] + (row + j) * projected_ld + column, dh);
        else
          cell(dh, s, half, row + j, j, column);
      };
      const int64_t both = now < later ? now : later;
      multiply_gates(rank, low(0), high(both), w_hh, L.weights[d].w_hh, L.P, hidden_gate, p, state.panel(next), after_row,
                     receive);
      // A sequence that ends here has no step after this one, and one that begins after it has none before.
      for (int64_t j = low(both); j < high(now); ++j)
        for (int v = 0; v < p.nv; ++v) receive(j, p.first + v * W, Vec<C>{});
      multiply_gates(rank, low(both), high(later), w_hh, L.weights[d].w_hh, L.P, hidden_gate, p, state.panel(next), after_row,
                     [&](int64_t j, int64_t column, Vec<C> sum) { to_h0(sum, s, j, column); });
    });
    if (project) {
      barrier.wait(share.members);
      auto row_of = [&](int64_t j) { return dprojected[half] + (row + j) * projected_ld; };
      share_of(hidden.panels(), [&](int64_t i, int64_t next) {
        const Panel p = hidden.panel(i);
        multiply_rows(low(0), high(now), L.P, w_hr + p.offset<X>(L.P), w_hr + hidden.panel(next).template offset<X>(L.P), p,
                      row_of, [&](int64_t j, int64_t column, Vec<C> sum) { cell(sum, s, half, row + j, j, column); });
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
  INLINE void multiply_rows(int64_t j0, int64_t j1, int64_t K, const X* panel, const X* next, const Panel& p, A&& a_row,
                            F&& receive) {
    multiply_panel<C>(j0, j1, p.nv, K, panel, next, a_row,
                      [&](int64_t j, int tall, const C* sums) {
                        for (int r = 0; r < tall; ++r)
                          for (int v = 0; v < p.nv; ++v, sums += W) receive(j + r, p.first + v * W, load(sums));
                      });
  }

  // The same for rows of gate gradients and the weights w [G*H, ld] of all gates: packed, to be packed, or as they lie.
  // Gate g is in plane plane_of(g) of a row.
  template <class P, class A, class F>
  INLINE void multiply_gates(int rank, int64_t j0, int64_t j1, const X* packed, const void* w, int64_t ld, P&& plane_of,
                             const Panel& p, const Panel& next, A&& a_row, F&& receive) {
    if (j1 <= j0) return;
    if (!direct) {
      const int64_t K = G * plane;
      const X *panel = packed + p.offset<X>(K), *after = packed + next.offset<X>(K);
      if (once) {
        X* to = own + rank * kWide * W * depth<X>(K);
        auto source = rows_by_plane(static_cast<const S*>(w), ld, plane_of);
        for (int64_t k = 0; k < words<X>(K); ++k) pack_word<X, C>(to, p, ld, K, k, source);
        panel = after = to;
      }
      return multiply_rows(j0, j1, K, panel, after, p, a_row, receive);
    }
    for_tiles(j0, j1, kRowsAtOnce, [&](int64_t j, int tall) {
      C sums[kRowsAtOnce * kWide * W] = {};
      with_rows(tall, [&](auto R) {
        for (int g = 0; g < G; ++g) {
          const X* a[R.value];
          for (int r = 0; r < R.value; ++r) a[r] = a_row(j + r) + plane_of(g) * plane;
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
  INLINE void cell(Vec<C> dh, int64_t s, int half, int64_t row, int64_t j, int64_t unit) {
    const int64_t t = steps.t(s), n = L.H - unit;
    const bool ends = j >= steps.ended(s), keep = !ends && !cut(s, j);
    C* carried = carry + j * Hp + unit;
    X* to = dgates[half] + row * dgates_ld + unit;
    const S* saved = saved_of(CELL) ? at<const S>(L.gates, L, t, j) + d * L.gates_direction + unit : nullptr;
    auto put = [&](int which, Vec<C> v) {
      // The planes' padding takes part in products (with weights of zero), so it must be finite.
      if (__builtin_expect(n < W, 0))
        for (int64_t k = n; k < W; ++k) v[k] = 0;
      store(to + which * plane, v);
    };
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
      if (project && L.want_weights) store(full[half] + row * Hp + unit, o * tanh_c);
    } else if constexpr (CELL == Cell::gru) {
      if (keep) dh += load(carried);
      Vec<C> dr, dz, dn, dn_h, direct;
      cells::gru_backward<Vec<C>>(load(saved), load(saved + Hp), load(saved + 2 * Hp), load(saved + 3 * Hp),
                                  state_before(L.output, L.h0), dh, dr, dz, dn, dn_h, direct);
      put(input_plane(0), dr);
      put(input_plane(1), dz);
      put(input_plane(2), dn);
      put(hidden_plane(2), dn_h);
      store(carried, direct);
    } else {
      Vec<C> h = load(at<const S>(L.output, L, t, j) + d * L.P + unit, n);
      put(0, cells::rnn_backward<CELL == Cell::rnn_relu, Vec<C>>(h, dh));
    }
  }

  // dx = dgates W_ih for the chunk; the second direction adds to the first. The team shares its rows, or its columns
  // where every one of those takes packing.
  void input_gradient(int half, int64_t begin, int64_t count, int rank, int size) {
    const int64_t r0 = once ? 0 : part(count, rank, size), r1 = once ? count : part(count, rank + 1, size);
    const int64_t i0 = once ? part(inputs.panels(), rank, size) : 0,
                  i1 = once ? part(inputs.panels(), rank + 1, size) : inputs.panels();
    auto row_of = [&](int64_t row) { return dgates[half] + row * dgates_ld; };
    S** out = row_out + rank * chunk_rows;
    for_rows(begin, r0, r1,
             [&](int64_t row, int64_t s, int64_t j) { out[row] = at<S>(L.grad_input, L, steps.t(s), j); });
    for (int64_t i = i0; i < i1; ++i)
      multiply_gates(rank, r0, r1, w_ih, L.weights[d].w_ih, L.I, input_plane, inputs.panel(i),
                     inputs.panel(i + 1 < i1 ? i + 1 : i0), row_of, [&](int64_t row, int64_t column, Vec<C> sum) {
                       S* to = out[row] + column;
                       if (d) sum += load(to, L.I - column);
                       store(to, sum, L.I - column);
                     });
  }

  // Adds a chunk's part to dW_ih, dW_hh, db and dW_hr. Their rows are divided among the team.
  void weight_gradients(int half, int64_t count, bool first, int rank, int size) {
    const int64_t tall = (L.H + down - 1) / down;  // tiles of one gate
    for (int64_t tile = part(G * tall, rank, size), last = part(G * tall, rank + 1, size), tiles; tile < last;
         tile += tiles) {
      const int gate = static_cast<int>(tile / tall);
      tiles = (gate + 1) * tall < last ? (gate + 1) * tall - tile : last - tile;
      if (tiles > kRun) tiles = kRun;
      const int64_t unit = (tile - gate * tall) * down;
      const X* x_part = dgates[half] + input_plane(gate) * plane + unit;
      const X* h_part = dgates[half] + hidden_plane(gate) * plane + unit;
      X* packed = packed_gates + rank * kRun * down * depth<X>(chunk_rows);
      pack_down<X, C>(packed, x_part, dgates_ld, tiles, count);
      add_product(packed, tiles, unit, L.H, by_x, packed_x[half], count, sums[0] + gate * L.H * L.I, first);
      if (x_part != h_part) pack_down<X, C>(packed, h_part, dgates_ld, tiles, count);
      add_product(packed, tiles, unit, L.H, by_h, packed_h[half], count, sums[1] + gate * L.H * L.P, first);
    }
    const int64_t vectors = hidden.vectors();
    for (int64_t v = part(G * vectors, rank, size); sums[2] && v < part(G * vectors, rank + 1, size); ++v) {
      const int gate = static_cast<int>(v / vectors);
      const int64_t unit = v % vectors * W, x_column = input_plane(gate) * plane + unit,
                    h_column = hidden_plane(gate) * plane + unit;
      Vec<C> sum = add_rows(dgates[half] + x_column, count, sums[2] + gate * L.H + unit, L.H - unit, first);
      if (x_column == h_column)
        store(sums[3] + gate * L.H + unit, sum, L.H - unit);
      else
        add_rows(dgates[half] + h_column, count, sums[3] + gate * L.H + unit, L.H - unit, first);
    }
    if (!project) return;
    for (int64_t word = part(words<X>(count), rank, size); word < part(words<X>(count), rank + 1, size); ++word)
      pack_word(packed_full[half], by_full, count, word, [&](int64_t row) { return full[half] + row * Hp; });
    barrier.wait(size);
    const int64_t across = (L.P + down - 1) / down;
    for (int64_t tile = part(across, rank, size), last = part(across, rank + 1, size), tiles; tile < last;
         tile += tiles) {
      tiles = last - tile > kRun ? kRun : last - tile;
      X* packed = packed_gates + rank * kRun * down * depth<X>(chunk_rows);
      pack_down<X, C>(packed, dprojected[half] + tile * down, projected_ld, tiles, count);
      add_product(packed, tiles, tile * down, L.P, by_full, packed_full[half], count, sums[4], first);
    }
  }

  // into[0..n) (+)= the sums over the chunk's rows of a register of gradients, by runs of 16 rows: one chain over
  // hundreds of them would round at its full height every time.
  INLINE Vec<C> add_rows(const X* from, int64_t count, C* into, int64_t n, bool first) const {
    Vec<C> sum = first ? Vec<C>{} : load(into, n);
    for (int64_t begin = 0; begin < count; begin += 16) {
      Vec<C> run{};
      for (int64_t k = begin; k < begin + 16 && k < count; ++k) run += load(from + k * dgates_ld);
      sum += run;
    }
    store(into, sum, n);
    return sum;
  }

  // into[unit.., columns] (+)= packed^T B for a run of tiles.
  template <class Across>
  void add_product(const X* packed, int64_t tiles, int64_t unit, int64_t units, const Across& columns, const X* panels,
                   int64_t count, C* into, bool first) {
    const int64_t size = down * depth<X>(count);
    for (int64_t q = 0; q < columns.panels(); ++q) {
      const Panel p = columns.panel(q);
      const X* panel = panels + p.offset<X>(count);
      const X* next = panel + p.nv * W * depth<X>(count);
      for (int64_t i = 0; i < tiles; ++i) {
        Tile<C> tile;
        multiply_packed(p.nv, packed + i * size, panel, count, tile, next);
        next += p.nv * W * depth<X>(count) / tiles;
        const C* sum = tile.sums;
        for (int64_t r = 0; r < down && unit + i * down + r < units; ++r) {
          C* to = into + (unit + i * down + r) * columns.count + p.first;
          for (int v = 0; v < p.nv; ++v, sum += W, to += W) {
            const int64_t n = columns.count - p.first - v * W;
            store(to, first ? load(sum) : load(sum) + load(to, n), n);
          }
        }
      }
    }
  }

  // The sums in the result's 16-bit type.
  void write_results(int rank, int size) {
    const WeightGrads& w = L.grad_weights[d];
    void* results[5] = {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr};
    for (int i = 0; i < 5; ++i) {
      if (!results[i]) continue;
      const int64_t last = part(size_of(i), rank + 1, size);
      for (int64_t k = part(size_of(i), rank, size); k < last; k += W)
        store(static_cast<S*>(results[i]) + k, load(sums[i] + k, last - k), last - k);
    }
  }
};

template <Cell CELL, class S>
void backward_cell(const Backward& layer) {
  const int64_t rows = count_rows(layer);
  Backward used = layer;
  used.threads = useful_threads(layer, 2 * rows);
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
