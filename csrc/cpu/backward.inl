// One layer backward, one direction at a time, in chunks of steps from the last to the first. A chunk's time loop
// leaves the derivatives of its gates in a buffer that the cache holds; from there one product adds to dW_ih, one to
// dW_hh (their sums run over all chunks) and one gives dx. The team meets once per chunk.

template <Cell CELL, class S>
class BackwardKernel {
  using C = typename ComputeOf<S>::type;
  static constexpr int G = gates_of(CELL);
  static constexpr bool kStaged = sizeof(S) != sizeof(C);
  // dgates of a row lie in planes of `plane` columns, whole registers. GRU: n r z n_h, so that the input's three and
  // the recurrent three are each contiguous. Everyone else: the gates in their order.
  static constexpr int kPlanes = CELL == Cell::gru ? 4 : G;
  static constexpr int kHiddenPlane = CELL == Cell::gru ? 1 : 0;
  static constexpr int input_plane(int gate) { return CELL == Cell::gru ? (gate + 1) % 3 : gate; }
  static constexpr int hidden_plane(int gate) { return gate + kHiddenPlane; }

  const Backward& L;
  const int d;
  const Steps steps;
  const Columns<C, kWide> state, hidden, inputs;  // P, H and I columns
  const Columns<C, 3> by_x, by_h, by_full;        // the same as columns of the weight gradients
  const bool project;
  const int64_t Hp, plane, dgates_ld, chunk_rows;

  C *w_hh, *w_ih, *w_hr;                          // panels: [G*plane] by P, [G*plane] by I, [P] by H
  C* dgates[2];                                   // [chunk_rows, dgates_ld], chunks take turns
  C *dprojected[2], *full[2];                     // [chunk_rows, P padded], [chunk_rows, Hp]: projection only
  C* zeros;                                       // [G*plane]
  C* carry;                                       // [N, Hp]: dc, or GRU's direct part of dh
  C *packed_x[2], *packed_h[2], *packed_full[2];  // a chunk's x, h_prev and h before projection as panels
  C* packed_gates;                                // [ranks, 8 tiles, chunk_rows, kDown]
  C* sums[5];   // w_ih w_hh b_ih b_hh w_hr: running sums, the result itself where types agree
  S** row_out;  // [chunk_rows]
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
        Hp(padded(layer.H)),
        plane(hidden.vectors() * width<C>),
        dgates_ld(spread<C>(kPlanes * plane)),
        chunk_rows(rows_at_once(layer, all_rows)) {}

  // The depth of one weight gradient product: deep enough to be worth reading and writing its sums once. It must not
  // depend on the number of threads, or the sums would.
  static int64_t rows_at_once(const Layer& layer, int64_t all_rows) {
    int64_t rows = 384 + layer.N;
    return rows < all_rows ? rows : all_rows;
  }

  void carve(Carver& memory) {
    const int ranks = L.threads;
    w_hh = memory.take<C>(state.packed(G * plane));
    w_ih = memory.take<C>(L.grad_input.data ? inputs.packed(G * plane) : 0);
    w_hr = memory.take<C>(project ? hidden.packed(L.P) : 0);
    zeros = memory.take<C>(G * plane);
    carry = memory.take<C>(L.N * Hp);
    for (int half = 0; half < 2; ++half) {
      dgates[half] = memory.take<C>(chunk_rows * dgates_ld);
      dprojected[half] = memory.take<C>(project ? chunk_rows * padded(L.P) : 0);
      full[half] = memory.take<C>(project ? chunk_rows * Hp : 0);
      packed_x[half] = memory.take<C>(L.want_weights ? by_x.packed(chunk_rows) : 0);
      packed_h[half] = memory.take<C>(L.want_weights ? by_h.packed(chunk_rows) : 0);
      packed_full[half] = memory.take<C>(L.want_weights && project ? by_full.packed(chunk_rows) : 0);
    }
    packed_gates = memory.take<C>(L.want_weights ? ranks * 8 * chunk_rows * kDown : 0);
    row_out = memory.take<S*>(chunk_rows);
    const WeightGrads& w = L.grad_weights[d];
    void* results[5] = {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr};
    for (int i = 0; i < 5; ++i)
      sums[i] = kStaged ? memory.take<C>(results[i] ? size_of(i) : 0) : static_cast<C*>(results[i]);
  }

  static void body(void* self, int rank, int size) { static_cast<BackwardKernel*>(self)->run(rank, size); }

 private:
  int64_t size_of(int i) const {
    const int64_t sizes[5] = {G * L.H * L.I, G * L.H * L.P, G * L.H, G * L.H, L.P * L.H};
    return sizes[i];
  }

  void run(int rank, int size) {
    prepare(rank, size);
    barrier.wait(size);
    const Share share(L, rank, size);
    const int64_t j0 = share.first_row(L, share.group), j1 = share.first_row(L, share.group + 1);
    int half = 0;
    const C* after = nullptr;  // dgates of the step after the one at hand
    for (int64_t end = L.T; end > 0;) {
      const int64_t begin = steps.chunk_begin(end, chunk_rows);
      int64_t count = 0;
      for (int64_t s = begin; s < end; ++s) count += steps.active(s);
      if (L.want_weights) pack_operands(half, begin, count, rank, size);
      int64_t row = count;  // of the chunk, the first one of the step
      for (int64_t s = end - 1; s >= begin; --s) {
        row -= steps.active(s);
        step(s, half, row, after, j0, j1, share);
        after = dgates[half] + row * dgates_ld;
      }
      if (begin == 0) step(-1, half, 0, after, j0, j1, share);
      barrier.wait(size);
      if (L.grad_input.data) input_gradient(half, begin, count, rank, size);
      if (L.want_weights) weight_gradients(half, count, end == L.T, rank, size);
      half ^= 1;
      end = begin;
    }
    if (kStaged && L.want_weights) {
      barrier.wait(size);
      write_results(rank, size);
    }
  }

  // Packs the weights, each thread its share.
  void prepare(int rank, int size) {
    const S *ih = static_cast<const S*>(L.weights[d].w_ih), *hh = static_cast<const S*>(L.weights[d].w_hh),
            *hr = static_cast<const S*>(L.weights[d].w_hr);
    const int64_t K = G * plane;
    if (rank == 0)
      for (int64_t k = 0; k < K; ++k) zeros[k] = 0;
    for (int64_t k = part(K, rank, size); k < part(K, rank + 1, size); ++k) {
      const int64_t which = k / plane, unit = k % plane;
      const bool inside = unit < L.H;
      int in_gate = 0;
      for (int g = 0; g < G; ++g)
        if (input_plane(g) == which) in_gate = g;
      pack_row(w_hh, state, K, k, inside ? hh + (which * L.H + unit) * L.P : nullptr);
      if (L.grad_input.data) pack_row(w_ih, inputs, K, k, inside ? ih + (in_gate * L.H + unit) * L.I : nullptr);
    }
    if (project)
      for (int64_t k = part(L.P, rank, size); k < part(L.P, rank + 1, size); ++k)
        pack_row(w_hr, hidden, L.P, k, hr + k * L.H);
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
    for_rows(begin, part(count, rank, size), part(count, rank + 1, size), [&](int64_t row, int64_t s, int64_t j) {
      pack_row(packed_x[half], by_x, count, row, at<const S>(L.input, L, steps.t(s), j));
      pack_row(packed_h[half], by_h, count, row, before(L.output, L.h0, L.P, s, j));
    });
  }

  // Step s (or -1: only what reaches the initial state) for the rows j0..j1 and a member's share of the units.
  void step(int64_t s, int half, int64_t row, const C* after, int64_t j0, int64_t j1, const Share& share) {
    const int64_t now = steps.active(s), later = steps.active(s + 1);
    auto low = [&](int64_t j) { return j < j0 ? j0 : j; };
    auto high = [&](int64_t j) { return j > j1 ? j1 : j; };
    // A sequence that ends here has no step after this one; a row of zeros stands for its gates' derivatives.
    auto after_row = [&](int64_t j) { return j < later ? after + kHiddenPlane * plane + j * dgates_ld : zeros; };
    auto share_of = [&](int64_t panels, auto&& f) {
      const int64_t p0 = part(panels, share.member, share.members), p1 = part(panels, share.member + 1, share.members);
      for (int64_t i = p0; i < p1; ++i) f(s & 1 ? p0 + p1 - 1 - i : i);
    };
    share_of(state.panels(), [&](int64_t i) {
      const Panel p = state.panel(i, G * plane);
      auto receive = [&](int64_t j, int64_t column, Vec<C> sum) {
        const Vec<C> dh = incoming(sum, s, j, column);
        if (project)
          store(dprojected[half] + (row + j) * padded(L.P) + column, dh);
        else
          cell(dh, s, half, row + j, j, column);
      };
      multiply_rows(low(0), high(now), G * plane, w_hh, p, after_row, receive);
      multiply_rows(low(now), high(later), G * plane, w_hh, p, after_row,
                    [&](int64_t j, int64_t column, Vec<C> sum) { to_h0(sum, s, j, column); });
    });
    if (project) {
      barrier.wait(share.members);
      auto row_of = [&](int64_t j) { return dprojected[half] + (row + j) * padded(L.P); };
      share_of(hidden.panels(), [&](int64_t i) {
        multiply_rows(low(0), high(now), L.P, w_hr, hidden.panel(i, L.P), row_of,
                      [&](int64_t j, int64_t column, Vec<C> sum) { cell(sum, s, half, row + j, j, column); });
      });
    }
    if (CELL == Cell::lstm && L.grad_c0)
      share_of(hidden.vectors(), [&](int64_t v) {
        for (int64_t j = low(now); j < high(later); ++j) to_c0(s, j, v * width<C>);
      });
    barrier.wait(share.members);
  }

  // receive(j, column, sum) for the product of rows a_row(j) with a panel, K deep.
  template <class A, class F>
  void multiply_rows(int64_t j0, int64_t j1, int64_t K, const C* packed, const Panel& p, A&& a_row, F&& receive) {
    for_tiles(j0, j1, tile_rows(p.nv), [&](int64_t j, int tall) {
      const C* a[kMaxRows];
      for (int r = 0; r < tall; ++r) a[r] = a_row(j + r);
      Tile<C> tile;
      multiply(tall, p.nv, a, packed + p.offset, K, tile);
      for (int r = 0; r < tall; ++r)
        for (int v = 0; v < p.nv; ++v)
          receive(j + r, p.first + v * width<C>, load(tile.sums + (r * p.nv + v) * width<C>));
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
    C *carried = carry + j * Hp + unit, *to = dgates[half] + row * dgates_ld + unit;
    const S* saved = saved_of(CELL) ? at<const S>(L.gates, L, t, j) + d * L.gates_direction + unit : nullptr;
    auto put = [&](int which, Vec<C> v) {
      // The planes' padding takes part in products (with weights of zero), so it must be finite.
      if (__builtin_expect(n < width<C>, 0))
        for (int64_t k = n; k < width<C>; ++k) v[k] = 0;
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

  // dx = dgates W_ih for the chunk; the second direction adds to the first.
  void input_gradient(int half, int64_t begin, int64_t count, int rank, int size) {
    const int64_t r0 = part(count, rank, size), r1 = part(count, rank + 1, size);
    S** out = row_out;
    for_rows(begin, r0, r1,
             [&](int64_t row, int64_t s, int64_t j) { out[row] = at<S>(L.grad_input, L, steps.t(s), j); });
    auto row_of = [&](int64_t row) { return dgates[half] + row * dgates_ld; };
    for (int64_t i = 0; i < inputs.panels(); ++i)
      multiply_rows(r0, r1, G * plane, w_ih, inputs.panel(i, G * plane), row_of,
                    [&](int64_t row, int64_t column, Vec<C> sum) {
                      S* to = out[row] + column;
                      if (d) sum += load(to, L.I - column);
                      store(to, sum, L.I - column);
                    });
  }

  // Adds a chunk's part to dW_ih, dW_hh, db and dW_hr. Their rows are divided among the team.
  void weight_gradients(int half, int64_t count, bool first, int rank, int size) {
    const int64_t down = (L.H + kDown - 1) / kDown;  // tiles of one gate
    for (int64_t tile = part(G * down, rank, size), last = part(G * down, rank + 1, size); tile < last;) {
      const int gate = static_cast<int>(tile / down);
      int64_t tiles = (gate + 1) * down < last ? (gate + 1) * down - tile : last - tile;
      if (tiles > 8) tiles = 8;
      const int64_t unit = (tile - gate * down) * kDown;
      const C* x_part = dgates[half] + input_plane(gate) * plane + unit;
      const C* h_part = dgates[half] + hidden_plane(gate) * plane + unit;
      C* biases = sums[2] ? sums[2] + gate * L.H : nullptr;
      C* packed = pack_gradient(x_part, dgates_ld, tiles, unit, L.H, count, biases, first, rank);
      add_product(packed, tiles, unit, L.H, by_x, packed_x[half], count, sums[0] + gate * L.H * L.I, first);
      biases = sums[3] ? sums[3] + gate * L.H : nullptr;
      if (x_part != h_part)
        packed = pack_gradient(h_part, dgates_ld, tiles, unit, L.H, count, biases, first, rank);
      else if (biases)
        for (int64_t u = unit; u < unit + tiles * kDown && u < L.H; ++u) biases[u] = sums[2][gate * L.H + u];
      add_product(packed, tiles, unit, L.H, by_h, packed_h[half], count, sums[1] + gate * L.H * L.P, first);
      tile += tiles;
    }
    if (!project) return;
    for (int64_t row = part(count, rank, size); row < part(count, rank + 1, size); ++row)
      pack_row(packed_full[half], by_full, count, row, full[half] + row * Hp);
    barrier.wait(size);
    const int64_t across = (L.P + kDown - 1) / kDown;
    for (int64_t tile = part(across, rank, size), last = part(across, rank + 1, size); tile < last;) {
      const int64_t tiles = last - tile > 8 ? 8 : last - tile, unit = tile * kDown;
      const C* packed =
          pack_gradient(dprojected[half] + unit, padded(L.P), tiles, unit, L.P, count, nullptr, first, rank);
      add_product(packed, tiles, unit, L.P, by_full, packed_full[half], count, sums[4], first);
      tile += tiles;
    }
  }

  // Columns of the gradients as tiles [k][kDown], k over the chunk's rows; their sums, over k, go to the biases.
  C* pack_gradient(const C* from, int64_t ld, int64_t tiles, int64_t unit, int64_t units, int64_t count, C* biases,
                   bool first, int rank) {
    C* packed = packed_gates + rank * 8 * chunk_rows * kDown;
    C sum[8 * kDown] = {};
    for (int64_t k = 0; k < count; ++k) {
      const C* row = from + k * ld;
      for (int64_t i = 0; i < tiles; ++i) {
        C* to = packed + (i * count + k) * kDown;
#pragma GCC unroll 8
        for (int r = 0; r < kDown; ++r) {
          to[r] = row[i * kDown + r];
          sum[i * kDown + r] += row[i * kDown + r];
        }
      }
    }
    if (biases)
      for (int64_t i = 0; i < tiles * kDown && unit + i < units; ++i)
        biases[unit + i] = first ? sum[i] : biases[unit + i] + sum[i];
    return packed;
  }

  // into[unit.., columns] (+)= packed^T B for a run of tiles.
  void add_product(const C* packed, int64_t tiles, int64_t unit, int64_t units, const Columns<C, 3>& columns,
                   const C* panels, int64_t count, C* into, bool first) {
    for (int64_t q = 0; q < columns.panels(); ++q) {
      const Panel p = columns.panel(q, count);
      for (int64_t i = 0; i < tiles; ++i) {
        Tile<C> tile;
        multiply_packed(p.nv, packed + i * count * kDown, panels + p.offset, count, tile);
        for (int64_t r = 0; r < kDown && unit + i * kDown + r < units; ++r)
          for (int v = 0; v < p.nv; ++v) {
            const int64_t at = p.first + v * width<C>, n = columns.count - at;
            C* to = into + (unit + i * kDown + r) * columns.count + at;
            Vec<C> sum = load(tile.sums + (r * p.nv + v) * width<C>);
            if (!first) sum += load(to, n);
            store(to, sum, n);
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
      for (int64_t k = part(size_of(i), rank, size); k < last; k += width<C>)
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
