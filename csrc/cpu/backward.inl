// One layer backward, one direction at a time, in chunks of steps from the last to the first. A chunk's time loop
// leaves the derivatives of its gates in a buffer that the cache holds; from there one product adds to dW_ih, one to
// dW_hh (their sums run over all chunks, gradients.inl) and one gives dx. The team has one barrier per chunk.

// A row of sums of no product.
template <class C>
alignas(64) constexpr C kZeros[kWide * width<C>] = {};

// What the cost model (cost.h) knows of a backward pass over one direction.
template <class S>
Work backward_work(const Backward& layer, int64_t rows) {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  Work w = work_of_pass<S>(layer, rows);
  w.backward = true;
  w.input_gradient = layer.grad_input.data != nullptr;
  w.weight_gradients = layer.want_weights;
  w.direct = few_rows_backward<X>(layer, rows);
  const Columns<X, C, kWide> state{layer.P, has_short<X> && !w.direct};
  w.bytes = state.packed(gates_of(layer.cell) * GatePlanes<X, C>(layer).plane) * sizeof(X);
  w.panels = state.panels();
  const int64_t products = layer.T - 1 + (layer.grad_h0 || layer.grad_c0);
  w.once = layer.T == 1 || (products <= 1 && w.bytes > cached_bytes(on_tiles<X>) && !w.direct);
  return w;
}

template <class S>
class BackwardKernel : BackwardPass<S> {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  using Pass = BackwardPass<S>;
  using Planes = GatePlanes<X, C>;
  static constexpr int W = width<C>;
  using Pass::L, Pass::d, Pass::steps, Pass::project, Pass::Hp, Pass::carry;

  const CellKernels<S> cell;
  const int G;  // gates
  const Work work;
  const bool direct, single_row;
  const Columns<X, C, kWide> state, hidden, inputs;  // P, H and I columns
  const bool once_hh, once_ih;  // the weights take part in one product: packed panel by panel as it goes
  const bool far;               // what forward saved is not in the L2 cache
  const int halves;             // of the chunks' buffers
  const Planes planes;
  const int64_t projected_ld, chunk_rows, scratch_size;

  X *w_hh, *w_ih, *w_hr;  // panels: [G*plane] by P, [G*plane] by I, [P] by H
  X* scratch;          // [ranks, scratch_size]: the current panel of weights that are used once; transposed gradients
  Chunk<X> chunks[2];  // used in turn
  S** row_out;         // [ranks, chunk_rows]
  Barrier barrier;
  WeightGradients<S> weight_gradients;

 public:
  BackwardKernel(const Backward& layer, int direction, int64_t all_rows)
      : BackwardKernel(layer, direction, all_rows, Planes(layer)) {}

 private:
  BackwardKernel(const Backward& layer, int direction, int64_t all_rows, const Planes& of_gates)
      : Pass{layer,           direction,      {layer, direction == 1}, layer.weights[direction].w_hr != nullptr,
             padded(layer.H), of_gates.plane, of_gates.lead,           of_gates.ld},
        cell(kernels_of<S>(layer.cell)),
        G(gates_of(layer.cell)),
        work(backward_work<S>(layer, all_rows)),
        direct(work.direct),
        single_row(layer.N == 1),
        state{layer.P, has_short<X> && !direct},
        hidden{layer.H},
        inputs{layer.I, has_short<X> && !direct},
        once_hh(work.once),
        once_ih(rows_at_once(layer, all_rows) >= all_rows),
        far(all_rows * (saved_of(layer.cell) + 2) * padded(layer.H) * int64_t(sizeof(S)) > kKept),
        halves(once_ih ? 1 : 2),
        planes(of_gates),
        projected_ld(depth<X>(padded(layer.P))),
        chunk_rows(rows_at_once(layer, all_rows)),
        scratch_size(elements_of_scratch()),
        weight_gradients(*this, projected_ld, chunk_rows) {}

 public:
  // The depth of one weight gradient product: deep enough to be worth reading and writing its sums once, chunks of
  // nearly equal depth. It must not depend on the number of threads, or the sums would.
  static int64_t rows_at_once(const Layer& layer, int64_t all_rows) {
    const int64_t most = 384 + layer.N, chunks = (all_rows + most - 1) / most;
    const int64_t rows = (all_rows + chunks - 1) / chunks + layer.N - 1;  // whole steps
    return rows < all_rows ? rows : all_rows;
  }

  int64_t elements_of_scratch() const {
    const int64_t panel = (once_hh || once_ih) && !direct ? kWide * W * depth<X>(G * planes.plane) : 0,
                  transposed = WeightGradients<S>::transposed(L, chunk_rows);
    return panel > transposed ? panel : transposed;
  }

  void allocate(Arena& memory) {
    const int ranks = L.threads;
    w_hh = memory.take<X>(direct || once_hh ? 0 : state.packed(G * planes.plane));
    w_ih = memory.take<X>(direct || once_ih || !L.grad_input.data ? 0 : inputs.packed(G * planes.plane));
    scratch = memory.take<X>(ranks * scratch_size);
    w_hr = memory.take<X>(project ? hidden.packed(L.P) : 0);
    carry = memory.take<C>(L.N * Hp);
    for (int half = 0; half < halves; ++half)
      chunks[half] = {memory.take<X>(chunk_rows * planes.ld + WeightGradients<S>::kOverread),
                      memory.take<X>(project ? chunk_rows * projected_ld : 0),
                      memory.take<X>(project ? chunk_rows * Hp : 0)};
    row_out = memory.take<S*>(ranks * chunk_rows);
    weight_gradients.allocate(memory, halves);
  }

  static void body(void* self, int rank, int size) { static_cast<BackwardKernel*>(self)->run(rank, size); }

 private:
  void run(int rank, int size) {
    [[maybe_unused]] Products<X> scope;
    prepare(rank, size);
    barrier.wait(size);
    const Share share(rank, size, divides_rows(work, size));
    int half = 0;
    const X* after = nullptr;  // dgates of the step after the current one
    for (int64_t end = L.T; end > 0;) {
      const int64_t begin = steps.chunk_begin(end, chunk_rows);
      const int64_t count = steps.count(begin, end, 0, L.N);
      const auto [j0, j1] = share.sequences(steps, begin, end);
      const Chunk<X>& chunk = chunks[half];
      if (L.want_weights) weight_gradients.pack_operands(half, begin, count, rank, size);
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
        weight_gradients.add(chunk, half, begin, count, end == L.T, scratch + rank * scratch_size, rank, size, barrier);
      half = halves - 1 - half;
      end = begin;
    }
    if (WeightGradients<S>::kNarrow && L.want_weights) {
      barrier.wait(size);
      weight_gradients.write_results(rank, size);
    }
  }

  // Packs the weights, each thread its share.
  void prepare(int rank, int size) {
    const S *ih = static_cast<const S*>(L.weights[d].w_ih), *hh = static_cast<const S*>(L.weights[d].w_hh),
            *hr = static_cast<const S*>(L.weights[d].w_hr);
    const int64_t K = G * planes.plane, all = words<X>(K);
    for (int64_t k = part(all, rank, size); !direct && k < part(all, rank + 1, size); ++k) {
      if (!once_hh) pack_word(w_hh, state, K, k, rows_by_plane(hh, L.P, false));
      if (L.grad_input.data && !once_ih) pack_word(w_ih, inputs, planes.lead + K, k, rows_by_plane(ih, L.I, true));
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
        for (int which = 0; which < planes.count; ++which)
          zeros(dgates, planes.column(which) + L.H, planes.column(which + 1));
        if (on_tiles<X>) zeros(dgates, planes.column(planes.count), planes.ld);
        if (project) zeros(chunks[half].dprojected + row * projected_ld, L.P, projected_ld);
      }
  }

  // Of the weights that meet the input, or of those that meet the state before: the columns before their first plane in
  // a row of gate gradients, the plane of a gate counted from there, and the gate of a plane.
  int64_t lead(bool of_input) const { return of_input ? planes.lead : 0; }
  int plane_of(bool of_input, int gate) const { return of_input ? planes.of_input(gate) : gate; }
  int gate_in(bool of_input, int64_t plane) const {
    int gate = 0;
    for (int g = 0; g < G; ++g)
      if (plane_of(of_input, g) == plane) gate = g;
    return gate;
  }

  // The row of w [G*H, ld] that multiplies element `row` of a row of gate gradients, null for the padding.
  auto rows_by_plane(const S* w, int64_t ld, bool of_input) const {
    return [this, w, ld, of_input](int64_t row) {
      if (row < lead(of_input)) return static_cast<const S*>(nullptr);
      const int64_t in = (row - lead(of_input)) / planes.plane, unit = row - lead(of_input) - in * planes.plane;
      return unit < L.H ? w + (gate_in(of_input, in) * L.H + unit) * ld : nullptr;
    };
  }

  // The panel p of w [G*H, ld], in the order of the gate gradients.
  void pack_gates(X* to, const Panel& p, const S* w, int64_t ld, bool of_input) const {
    const int64_t K = lead(of_input) + G * planes.plane;
    int64_t word = 0;
    for (int64_t in = 0; in < G; ++in) {
      const S* gate = w + gate_in(of_input, in) * L.H * ld;
      const int64_t first = lead(of_input) + in * planes.plane;
      for (; word * per_word<X> < first + planes.plane; ++word)
        pack_word<X, C>(to, p, ld, K, word, [&](int64_t row) {
          return row >= first && row < first + L.H ? gate + (row - first) * ld : nullptr;
        });
    }
    for (; word < words<X>(K); ++word) pack_word<X, C>(to, p, ld, K, word, [](int64_t) -> const S* { return nullptr; });
  }

  // Step s (or -1: only what reaches the initial state) for the rows j0..j1 and a member's share of the units.
  void step(int64_t s, const Chunk<X>& chunk, int64_t row, const X* after, int64_t j0, int64_t j1, int rank,
            const Share& share) {
    const int64_t now = steps.active(s), later = steps.active(s + 1);
    auto low = [&](int64_t j) { return j < j0 ? j0 : j; };
    auto high = [&](int64_t j) { return j > j1 ? j1 : j; };
    auto after_row = [&](int64_t j) { return after + planes.column(planes.first_hidden) + j * planes.ld; };
    auto share_of = [&](int64_t panels, auto&& f) {  // f(panel, the one after it)
      const int64_t p0 = part(panels, share.member, share.members), p1 = part(panels, share.member + 1, share.members);
      for (int64_t i = p0; i < p1; ++i)
        s & 1 ? f(p0 + p1 - 1 - i, p0 + p1 - 1 - (i + 1 < p1 ? i + 1 : i)) : f(i, i + 1 < p1 ? i + 1 : i);
    };
    // The cell for `tall` sequences from j on and the registers of panel p.
    auto finish = [&](int64_t j, int64_t tall, const Panel& p, const C* sums, int64_t sums_ld, bool incoming) {
      cell.backward(*this, {s, j, p.first, tall, p.nv, sums, sums_ld, incoming,
                            chunk.dgates + (row + j) * planes.ld + planes.lead,
                            project && L.want_weights ? chunk.full + (row + j) * Hp : nullptr});
    };
    share_of(state.panels(), [&](int64_t i, int64_t next) {
      const Panel p = state.panel(i);
      auto after_and_cell = [&](int64_t j) {
        if (far && !project) prefetch_cell(s, j, p);
        return after_row(j);
      };
      auto receive = [&](int64_t j, int64_t tall, const C* sums, int64_t sums_ld) {
        if (project)
          store_projected(s, j, tall, p, sums, sums_ld, chunk.dprojected + (row + j) * projected_ld);
        else
          finish(j, tall, p, sums, sums_ld, true);
      };
      const int64_t both = now < later ? now : later;
      multiply_gates(single_row, once_hh, rank, low(0), high(both), w_hh, L.weights[d].w_hh, L.P, false, p,
                     state.panel(next), after_and_cell, receive);
      // A sequence that ends here has no step after this one, and one that begins after it has none before.
      if (low(both) < high(now)) receive(low(both), high(now) - low(both), kZeros<C>, 0);
      multiply_gates(single_row, once_hh, rank, low(both), high(later), w_hh, L.weights[d].w_hh, L.P, false, p,
                     state.panel(next), after_row, [&](int64_t j, int64_t tall, const C* sums, int64_t sums_ld) {
                       to_h0(s, j, tall, p, sums, sums_ld);
                     });
    });
    if (project) {
      barrier.wait(share.members);
      share_of(hidden.panels(), [&](int64_t i, int64_t next) {
        const Panel p = hidden.panel(i);
        auto row_of = [&](int64_t j) {
          if (far) prefetch_cell(s, j, p);
          return chunk.dprojected + (row + j) * projected_ld;
        };
        multiply_panel<C>(single_row, low(0), high(now), p, L.P, w_hr + p.offset<X>(L.P),
                          w_hr + hidden.panel(next).template offset<X>(L.P), row_of,
                          [&](int64_t j, int tall, const C* sums) { finish(j, tall, p, sums, p.nv * W, false); });
      });
    }
    if (has_cell_state(L.cell) && L.grad_c0)
      share_of(hidden.vectors(), [&](int64_t v, int64_t) {
        for (int64_t j = low(now); j < high(later); ++j) to_c0(s, j, v * W);
      });
    barrier.wait(share.members);
  }

  // Prefetches what the cell will need of sequence j in step s when the GEMM is done: into the L2 cache, because the
  // panel passes through the L1 cache in between, and it holds up the GEMM less. (The row of the step itself, of which
  // `cells` or `output` is the state after it, was the row before the step that came first.)
  INLINE void prefetch_cell(int64_t s, int64_t j, const Panel& p) const {
    if (s < 0) return;
    const bool has_c = has_cell_state(L.cell);
    const S *saved = L.gates.data ? at<const S>(L.gates, L, steps.t(s), j) + d * L.gates_direction : nullptr,
            *grad = L.grad_output.data ? at<const S>(L.grad_output, L, steps.t(s), j) + d * L.P : nullptr,
            *before = this->before(has_c ? L.cells : L.output, has_c ? L.c0 : L.h0, has_c ? L.H : L.P, s, j);
    for (int64_t column = p.first; column < p.first + p.nv * W; column += W) {
      for (int slot = 0; saved && slot < 4; ++slot) __builtin_prefetch(saved + slot * Hp + column, 0, 2);
      if (before) __builtin_prefetch(before + column, 0, 2);
      if (grad && !project) __builtin_prefetch(grad + column, 0, 2);
    }
  }

  // receive(j, rows, sums, elements of a row of them) for the GEMM of rows of gate gradients with panel p of w [G*H,
  // ld], the weights of all gates: packed before, packed here, or unpacked.
  template <class A, class F>
  INLINE void multiply_gates(bool single_row, bool once, int rank, int64_t j0, int64_t j1, const X* packed,
                             const void* w, int64_t ld, bool of_input, const Panel& p, const Panel& next, A&& a_row,
                             F&& receive) {
    if (j1 <= j0) return;
    if (!direct) {
      const int64_t K = lead(of_input) + G * planes.plane;
      const bool kept = ld * K * int64_t(sizeof(X)) <= kKept;
      const X *panel = packed + p.offset<X>(K), *after = kept ? panel : packed + next.offset<X>(K);
      if (once) {
        X* to = scratch + rank * scratch_size;
        pack_gates(to, p, static_cast<const S*>(w), ld, of_input);
        panel = after = to;
      }
      return multiply_panel<C>(single_row, j0, j1, p, K, panel, after, a_row,
                               [&](int64_t j, int tall, const C* sums) { receive(j, tall, sums, p.nv * W); });
    }
    for_tiles(j0, j1, kRowsAtOnce, [&](int64_t j, int tall) {
      C sums[kRowsAtOnce * kWide * W] = {};
      with_rows(tall, [&](auto R) {
        for (int g = 0; g < G; ++g) {
          const X* a[R.value];
          for (int r = 0; r < R.value; ++r) a[r] = a_row(j + r) + lead(of_input) + plane_of(of_input, g) * planes.plane;
          add_times_columns<R.value, C>(a, static_cast<const S*>(w) + g * L.H * ld + p.first, ld, L.H, ld - p.first,
                                        sums);
        }
      });
      receive(j, tall, sums, kWide * W);
    });
  }

  // With a projection: dh of a tile, the operand of the GEMM with w_hr.
  void store_projected(int64_t s, int64_t j, int64_t tall, const Panel& p, const C* sums, int64_t sums_ld,
                       X* to) const {
    for (int64_t r = 0; r < tall; ++r, sums += sums_ld, to += projected_ld) {
      const IncomingRow<S> incoming(*this, s, j + r);
      for (int v = 0; v < p.nv; ++v) {
        const int64_t column = p.first + v * W, n = L.P - column;
        store(to + column, incoming.add_to(load(sums + v * W), column, n), n);
      }
    }
  }

  void to_h0(int64_t s, int64_t j, int64_t tall, const Panel& p, const C* sums, int64_t sums_ld) const {
    if (!L.grad_h0) return;
    for (int64_t r = 0; r < tall; ++r, ++j, sums += sums_ld)
      for (int v = 0; v < p.nv; ++v) {
        const int64_t column = p.first + v * W;
        Vec<C> sum = load(sums + v * W);
        if (splits_candidate(L.cell)) sum += load(carry + j * Hp + column);
        if (this->cut(s, j)) sum = Vec<C>{};
        store(static_cast<S*>(L.grad_h0) + (d * L.N + L.order[j]) * L.P + column, sum, L.P - column);
      }
  }

  void to_c0(int64_t s, int64_t j, int64_t column) const {
    Vec<C> dc = this->cut(s, j) ? Vec<C>{} : load(carry + j * Hp + column);
    store(static_cast<S*>(L.grad_c0) + (d * L.N + L.order[j]) * L.H + column, dc, L.H - column);
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
      multiply_gates(false, once_ih, rank, r0, r1, w_ih, L.weights[d].w_ih, L.I, true, inputs.panel(i),
                     inputs.panel(i + 1 < i1 ? i + 1 : i0), row_of,
                     [&](int64_t row, int64_t tall, const C* sums, int64_t sums_ld) {
                       const Panel p = inputs.panel(i);
                       for (int64_t r = 0; r < tall; ++r, sums += sums_ld)
                         for (int v = 0; v < p.nv; ++v) {
                           const int64_t column = p.first + v * W;
                           S* const to = out[row + r] + column;
                           Vec<C> sum = load(sums + v * W);
                           if (d) sum += load(to, L.I - column);
                           store(to, sum, L.I - column);
                         }
                     });
  }
};

template <class S>
void run_backward(const Backward& layer) {
  const int64_t rows = count_rows(layer);
  Backward used = layer;
  used.threads = threads_of_call(backward_work<S>(layer, rows), layer.threads);
  for (int d = 0; d < layer.D; ++d) {
    BackwardKernel<S> kernel(used, d, rows);
    Arena size(nullptr);
    kernel.allocate(size);
    Workspace workspace(size.used());
    Arena memory(workspace.data());
    kernel.allocate(memory);
    run_team(used.threads, BackwardKernel<S>::body, &kernel);
  }
  end_of_call(layer.threads);
}
