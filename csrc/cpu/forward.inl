// One layer forward, one direction at a time, step by step: a GEMM of x and h with the packed weights, whose sums stay
// in the L1 cache until the cell has computed h and c from them. For small batches the input GEMM is computed ahead for
// as many steps as fit in the cache, so that W_ih is not read again at every step.

// Steps of the layers that this thread has called. Each step reads the weights in the opposite order of the one before,
// the first of a call too: what was read last is still in the cache.
inline __thread int64_t steps_taken = 0;

template <class S>
class ForwardKernel : ForwardPass<S> {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  using Pass = ForwardPass<S>;
  static constexpr int W = width<C>;
  using Pass::bias, Pass::bias_hn, Pass::h, Pass::full, Pass::c;
  using Pass::L, Pass::d, Pass::steps, Pass::project, Pass::Hp, Pass::x_columns, Pass::h_ld, Pass::full_ld;

  const CellKernels<S> cell;
  const int G;  // gates
  const bool has_c, single_row, staging, starts_reversed;
  GateWeights<S> weights;
  const GatePanels<X, C> units;
  const Columns<X, C, kWide> projected;
  const int64_t gates_ld, rows_each, all_rows;

  X* w_hr;  // panels
  // Of the rows of chunks, a region for each group (none where all steps are joint):
  C* gates;        // [all_rows, gates_ld]: x W_ih^T + bias
  X* staged;       // [all_rows, depth of I]: copies of the input as operands
  const X** rows;  // [all_rows]: the input's rows, copied or not
  Barrier barrier;

 public:
  ForwardKernel(const Forward& layer, int direction, int64_t total)
      : ForwardKernel(layer, direction, total, GateWeights<S>(layer, direction, total)) {}

 private:
  ForwardKernel(const Forward& layer, int direction, int64_t total, const GateWeights<S>& of_gates)
      : Pass{layer,
             direction,
             {layer, direction == 1},
             layer.weights[direction].w_hr != nullptr,
             padded(layer.H),
             of_gates.x_columns,
             spread<X>(of_gates.x_columns + of_gates.gap() + depth<X>(padded(layer.P))),
             spread<X>(depth<X>(padded(layer.H)))},
        cell(kernels_of<S>(layer.cell)),
        G(gates_of(layer.cell)),
        has_c(has_cell_state(layer.cell)),
        single_row(layer.N == 1),
        staging(!std::is_same<X, S>::value || depth<X>(layer.I) != layer.I || on_tiles<X>),
        starts_reversed(steps_taken & 1),
        weights(of_gates),
        units{layer.H, G},
        projected{layer.P},
        gates_ld(spread<C>(units.row_length())),
        rows_each(gate_rows_at_once<S>(layer, total)),
        all_rows(all_joint() ? 0 : rows_each * layer.threads + layer.N) {}

 public:
  void allocate(Arena& memory) {
    weights.allocate(memory);
    w_hr = memory.take<X>(project ? projected.packed(L.H) : 0);
    bias = memory.take<C>(units.row_length() + W);
    bias_hn = memory.take<C>(Hp);
    h[0] = memory.take<X>(L.N * h_ld) + weights.gap();
    h[1] = memory.take<X>(L.N * h_ld) + weights.gap();
    full = memory.take<X>(project ? L.N * full_ld : 0);
    c = memory.take<C>(has_c ? L.N * Hp : 0);
    gates = memory.take<C>(all_rows * gates_ld);
    staged = memory.take<X>(staging ? all_rows * depth<X>(L.I) : 0);
    rows = memory.take<const X*>(all_rows);
  }

  static void body(void* self, int rank, int size) { static_cast<ForwardKernel*>(self)->run(rank, size); }

 private:
  void run(int rank, int size) {
    [[maybe_unused]] Products<X> scope;
    prepare(rank, size);
    barrier.wait(size);
    const Share share(rank, size, weights.by_rows(size));
    const auto [j0, j1] = share.sequences(steps, 0, L.T);
    const int64_t p0 = part(units.panels(), share.member, share.members),
                  p1 = part(units.panels(), share.member + 1, share.members);
    const int64_t most = rows_each * share.members;  // of a chunk, in addition to those of a step
    auto joint = [&, j0 = j0, j1 = j1](int64_t s) {
      return !all_rows || weights.joint(steps.active(s, j0, j1), share.members);
    };
    const C* x_gates = nullptr;  // of the step, where it is not joint
    int64_t end = 0;             // of the chunk
    for (int64_t s = 0; s < L.T; ++s) {
      const int64_t last = j0 + steps.active(s, j0, j1);
      if (joint(s)) {
        x_gates = nullptr;
      } else if (s < end) {
        x_gates += steps.active(s - 1, j0, j1) * gates_ld;
      } else {
        const int64_t row = share.group * most;  // of sequence 0, if the group had it
        const int64_t full = steps.chunk_end(s, most + j1 - j0, j0, j1);
        for (end = s + 1; end < full && !joint(end);) ++end;
        multiply_inputs(rank, share, s, steps.count(s, end, j0, j1), row + j0, j0, j1, p0, p1);
        x_gates = gates + row * gates_ld;
      }
      const HiddenRows<S> hidden(*this, s);
      const bool from_zeros = s == 0 && !L.h0;
      auto panel_step = [&](int64_t panel, int64_t next) __attribute__((always_inline)) {
        if (from_zeros && weights.skips(last - j0, units.panel(panel)))
          step<true>(rank, hidden, x_gates, j0, last, panel, next);
        else
          step<false>(rank, hidden, x_gates, j0, last, panel, next);
      };
      // Panels forwards and backwards in turn, so that the last ones read are still in the cache.
      if (reads_reversed(s))
        for (int64_t p = p1 - 1; p >= p0; --p) panel_step(p, p > p0 ? p - 1 : p);
      else
        for (int64_t p = p0; p < p1; ++p) panel_step(p, p + 1 < p1 ? p + 1 : p);
      if (s + 1 < L.T && joint(s + 1)) {
        const int64_t n = steps.active(s + 1, j0, j1);
        copy_inputs(s + 1, j0 + part(n, share.member, share.members), j0 + part(n, share.member + 1, share.members));
      }
      barrier.wait(share.members);
      if (project) {
        const int64_t q0 = part(projected.panels(), share.member, share.members),
                      q1 = part(projected.panels(), share.member + 1, share.members);
        for (int64_t q = q0; q < q1; ++q) project_step(hidden, j0, last, q, q + 1 < q1 ? q + 1 : q);
        barrier.wait(share.members);
      }
    }
  }

  // Whether all steps surely are joint, whatever team will run them.
  bool all_joint() const {
    const int groups = weights.by_rows(L.threads) ? L.threads : 1;
    if (steps.active(0) != L.N || steps.active(L.T - 1) != L.N) return false;
    for (int g = 0; g < groups; ++g)
      if (!weights.joint(part(L.N, g + 1, groups) - part(L.N, g, groups), L.threads / groups)) return false;
    return true;
  }

  // Packs the weights and stores the initial state, each thread its share.
  void prepare(int rank, int size) {
    const Weights& w = L.weights[d];
    const S *hr = static_cast<const S*>(w.w_hr), *b_ih = static_cast<const S*>(w.b_ih),
            *b_hh = static_cast<const S*>(w.b_hh);
    weights.prepare(rank, size);
    if (x_columns) copy_inputs(0, part(steps.active(0), rank, size), part(steps.active(0), rank + 1, size));
    if (project)
      for (int64_t q = part(projected.panels(), rank, size); q < part(projected.panels(), rank + 1, size); ++q) {
        const Panel p = projected.panel(q);
        pack_transposed<X, C>(w_hr + p.offset<X>(L.H), p, L.H, [&](int64_t column) {
          return p.first + column < L.P ? hr + (p.first + column) * L.H : nullptr;
        });
      }
    for (int64_t i = 0; rank == 0 && i < units.panels(); ++i) {
      const Panel p = units.panel(i);
      for (int part = 0; part < units.parts(p); ++part) {  // each ends with zeros, which the next may overwrite
        const bool apart = splits_candidate(L.cell) && part == 2;
        const int64_t row = units.row(p, part), n = units.rows(p, part);
        Vec<C> of_x = b_ih ? load(b_ih + row, n) : Vec<C>{}, of_h = b_hh ? load(b_hh + row, n) : Vec<C>{};
        store(bias + units.column(p) + part * units.across(p), apart ? of_x : of_x + of_h);
        if (apart) store(bias_hn + p.first, of_h);
      }
    }
    for (int64_t j = part(L.N, rank, size); j < part(L.N, rank + 1, size); ++j) {
      int64_t first = 0;  // step
      if (L.resets.data)
        while (first < L.T && steps.active(first) <= j) ++first;
      const bool zero = !L.h0 || this->is_reset(first, j);
      const S* h0 = static_cast<const S*>(L.h0) + (d * L.N + L.order[j]) * L.P;
      for (int64_t u = 0, end = h_ld - x_columns - weights.gap(); u < end; u += W) {
        Vec<C> v = zero || u >= L.P ? Vec<C>{} : load(h0 + u, L.P - u);
        store(h[0] + j * h_ld + x_columns + u, v, end - u);
        store(h[1] + j * h_ld + x_columns + u, v, end - u);
      }
      for (int64_t u = 0; project && u < full_ld; u += W) store(full + j * full_ld + u, Vec<C>{});
      if (has_c) {
        const S* c0 = static_cast<const S*>(L.c0) + (d * L.N + L.order[j]) * L.H;
        for (int64_t u = 0; u < L.H; u += W) store(c + j * Hp + u, zero ? Vec<C>{} : load(c0 + u, L.H - u));
      }
    }
  }

  // Copies x of step s, sequences j0..j1, in front of their states before the step.
  void copy_inputs(int64_t s, int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; ++j) copy_row(h[s & 1] + j * h_ld, at<const S>(L.input, L, steps.t(s), j));
  }
  INLINE void copy_row(X* to, const S* x) const {
    for (int64_t k = 0; k < depth<X>(L.I); k += W) store(to + k, load(x + k, L.I - k), depth<X>(L.I) - k);
  }

  // gates = x W_ih^T + bias for the `count` rows of a chunk that begins with step s, of the sequences j0..j1 and for
  // the panels p0..p1; `first` is where the group's rows begin in the buffers.
  void multiply_inputs(int rank, const Share& share, int64_t s, int64_t count, int64_t first, int64_t j0, int64_t j1,
                       int64_t p0, int64_t p1) {
    const X** in = rows + first;
    steps.for_rows(s, part(count, share.member, share.members), part(count, share.member + 1, share.members), j0, j1,
                   [&](int64_t row, int64_t now, int64_t j) {
                     const S* x = at<const S>(L.input, L, steps.t(now), j);
                     in[row] = reinterpret_cast<const X*>(x);
                     if (!staging) return;
                     X* copy = staged + (first + row) * depth<X>(L.I);
                     copy_row(copy, x);
                     in[row] = copy;
                   });
    barrier.wait(share.members);
    for (int64_t i = p0; i < p1; ++i) {
      auto panel = [&](int64_t k) { return units.panel(reads_reversed(s) ? p0 + p1 - 1 - k : k); };
      const Panel p = panel(i);
      Vec<C> add[4];  // at most 4 gates or kWide registers
      for (int v = 0; v < p.nv; ++v) add[v] = load(bias + units.column(p) + v * W);
      weights.multiply_inputs(
          rank, 0, count, p, panel(i + 1 < p1 ? i + 1 : p0), [&](int64_t row) { return in[row]; },
          [&](int64_t row, int tall, const C* sums) {
            for (int r = 0; r < tall; ++r) {
              C* to = gates + (first + row + r) * gates_ld + units.column(p);
              for (int v = 0; v < p.nv; ++v, sums += W) store(to + v * W, load(sums) + add[v]);
            }
          });
    }
  }

  bool reads_reversed(int64_t s) const { return (s & 1) != starts_reversed; }

  // Step s for the rows j0..j1 and one panel of units; x_gates: x W_ih^T + bias of sequence 0 in it, null where joint;
  // FromZeros: h is zero in these rows, and weights.skips() the panel.
  template <bool FromZeros>
  void step(int rank, const HiddenRows<S>& hidden, const C* x_gates, int64_t j0, int64_t j1, int64_t panel,
            int64_t next) {
    const int64_t s = hidden.s;
    const X* before = h[s & 1] + (x_gates ? x_columns : 0);
    const Panel p = units.panel(panel);
    const int64_t hp = Hp;
    auto row = [&](int64_t j) __attribute__((always_inline)) {
      // What the cell will need when the GEMM is done.
      if (x_gates) {
        const C* of_x = x_gates + j * gates_ld + units.column(p);
        for (int v = 0; v < p.nv; ++v) __builtin_prefetch(of_x + v * W);
      }
      if (has_c) __builtin_prefetch(c + j * hp + p.first, 1);
      if (L.gates.data) {
        const S* saved = at<S>(L.gates, L, steps.t(s), j) + d * L.gates_direction + p.first;
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) __builtin_prefetch(saved + g * hp, 1);
        if (has_c) __builtin_prefetch(at<S>(L.cells, L, steps.t(s), j) + d * L.H + p.first, 1);
      }
      return before + j * h_ld;
    };
    auto receive = [&](int64_t j, int tall, C* sums)
                       __attribute__((always_inline)) { finish(hidden, x_gates, j, tall, p, sums); };
    if constexpr (FromZeros)
      weights.multiply_zeros(!x_gates, rank, j0, j1, p, units.panel(next), row, receive);
    else
      weights.multiply_step(!x_gates, rank, j0, j1, p, units.panel(next), row, receive);
  }

  // Hands a tile of sums to the cell.
  INLINE void finish(const HiddenRows<S>& hidden, const C* x_gates, int64_t j, int tall, const Panel& p, C* sums) {
    const int64_t column = units.column(p);
    ForwardTile<S> tile{hidden, j,    p.first,         units.across(p), tall,
                        p.nv,   sums, sums + kTile<C>, p.nv * W,        bias + column};
    if (x_gates) {  // from the chunk's buffer, where they include the bias
      tile.x_sums = x_gates + j * gates_ld + column;
      tile.x_ld = gates_ld;
      tile.bias = nullptr;
    }
    cell.forward(*this, tile);
  }

  void project_step(const HiddenRows<S>& hidden, int64_t j0, int64_t j1, int64_t panel, int64_t next) {
    const Panel p = projected.panel(panel);
    multiply_panel<C>(
        single_row, j0, j1, p, L.H, w_hr + p.offset<X>(L.H), w_hr + projected.panel(next).template offset<X>(L.H),
        [&](int64_t j) { return full + j * full_ld; },
        [&](int64_t j, int tall, const C* sums) {
          const HiddenRows<S> places = hidden;
          for (int r = 0; r < tall; ++r, ++j) {
            const HiddenRow<S> to = places(j);
            for (int v = 0; v < p.nv; ++v, sums += W) to.store_h(load(sums), p.first + v * W, L.P - p.first - v * W);
          }
        });
  }
};

template <class S>
void run_forward(const Forward& layer) {
  const int64_t rows = count_rows(layer);
  Forward used = layer;
  used.threads = threads_of_call(forward_work<S>(layer, rows), layer.threads);
  for (int d = 0; d < layer.D; ++d) {
    ForwardKernel<S> kernel(used, d, rows);
    Arena size(nullptr);
    kernel.allocate(size);
    Workspace workspace(size.used());
    Arena memory(workspace.data());
    kernel.allocate(memory);
    run_team(used.threads, ForwardKernel<S>::body, &kernel);
  }
  steps_taken += layer.T;
  end_of_call(layer.threads);
}
