// One layer forward, one direction at a time, step by step: a product of x and h with the packed weights whose sums
// stay in the first-level cache until the cell has turned them into h and c. Where rows are too few to read both
// weights at every step, the input product is made before, for as many steps at once as the cache holds.

template <Cell CELL, class S>
class ForwardKernel {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  static constexpr int G = gates_of(CELL), W = width<C>;

  const Forward& L;
  const int d;
  const Steps steps;
  const UnitPanels<CELL, X, C> units;
  const Columns<C, kWide> projected;
  GateWeights<CELL, S> weights;
  const bool project, alone, staging, turned;
  const int64_t Hp, gates_ld, x_columns, h_ld, full_ld, rows_each, all_rows;

  X* w_hr;            // panels
  C *bias, *bias_hn;  // [G*Hp]: b_ih + b_hh, but [Hp]: GRU's b_hn
  // Rows of operands. A product may read them to a multiple of its words, and 0 * inf is NaN: what lies behind a row's
  // values is zero from the start and never written to.
  X *h[2], *full;  // [N, h_ld] twice: the state before a step, behind the step's x where joint, and the state after
                   // it; [N, full_ld]: before projection
  C* c;            // [N, Hp]
  // Of the rows of chunks, a region for each group (none where all steps are joint):
  C* gates;        // [all_rows, gates_ld]: x W_ih^T + bias
  X* staged;       // [all_rows, depth of I]: input as operands
  const X** rows;  // [all_rows]: where that lies
  Barrier barrier;

 public:
  ForwardKernel(const Forward& layer, int direction, int64_t total)
      : L(layer),
        d(direction),
        steps{layer, direction == 1},
        units{layer.H},
        projected{layer.P},
        weights(layer, direction, total),
        project(layer.weights[direction].w_hr != nullptr),
        alone(layer.N == 1),
        staging(!std::is_same<X, S>::value || depth<X>(layer.I) != layer.I || on_tiles<X>),
        turned(steps_taken & 1),
        Hp(padded(layer.H)),
        gates_ld(spread<C>(G * padded(layer.H))),
        x_columns(weights.x_columns),
        h_ld(spread<X>(x_columns + depth<X>(padded(layer.P)))),
        full_ld(spread<X>(depth<X>(padded(layer.H)))),
        rows_each(rows_at_once(layer, total)),
        all_rows(all_joint() ? 0 : rows_each * layer.threads + layer.N) {}

  // Rows whose gates fit a thread's second-level cache beside the weights, but enough to make use of each panel.
  static int64_t rows_at_once(const Layer& layer, int64_t total) {
    int64_t rows = (int64_t(1) << 18) / (G * padded(layer.H) * sizeof(C));
    rows = rows < 96 ? 96 : rows > 768 ? 768 : rows;
    return rows < total ? rows : total;
  }

  void carve(Carver& memory) {
    weights.carve(memory);
    w_hr = memory.take<X>(project ? projected.template packed<X>(L.H) : 0);
    bias = memory.take<C>(G * Hp);
    bias_hn = memory.take<C>(Hp);
    h[0] = memory.take<X>(L.N * h_ld);
    h[1] = memory.take<X>(L.N * h_ld);
    full = memory.take<X>(project ? L.N * full_ld : 0);
    c = memory.take<C>(CELL == Cell::lstm ? L.N * Hp : 0);
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
    const int64_t most = rows_each * share.members;  // of a chunk, beside those of a step
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
        multiply_inputs(share, s, steps.count(s, end, j0, j1), row + j0, j0, j1, p0, p1);
        x_gates = gates + row * gates_ld;
      }
      // There and back, so that the panels at the turn are still in the cache.
      if (backwards(s))
        for (int64_t p = p1 - 1; p >= p0; --p) step(rank, s, x_gates, j0, last, p, p > p0 ? p - 1 : p);
      else
        for (int64_t p = p0; p < p1; ++p) step(rank, s, x_gates, j0, last, p, p + 1 < p1 ? p + 1 : p);
      if (s + 1 < L.T && joint(s + 1)) {
        const int64_t n = steps.active(s + 1, j0, j1);
        lay_inputs(s + 1, j0 + part(n, share.member, share.members), j0 + part(n, share.member + 1, share.members));
      }
      barrier.wait(share.members);
      if (project) {
        const int64_t q0 = part(projected.panels(), share.member, share.members),
                      q1 = part(projected.panels(), share.member + 1, share.members);
        for (int64_t q = q0; q < q1; ++q) project_step(s, j0, last, q, q + 1 < q1 ? q + 1 : q);
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

  // Packs the weights and lays the initial state, each thread its share.
  void prepare(int rank, int size) {
    const Weights& w = L.weights[d];
    const S *hr = static_cast<const S*>(w.w_hr), *b_ih = static_cast<const S*>(w.b_ih),
            *b_hh = static_cast<const S*>(w.b_hh);
    weights.pack(rank, size);
    if (x_columns) lay_inputs(0, part(steps.active(0), rank, size), part(steps.active(0), rank + 1, size));
    if (project)
      for (int64_t q = part(projected.panels(), rank, size); q < part(projected.panels(), rank + 1, size); ++q) {
        const Panel p = projected.panel(q);
        for (int v = 0; v < p.nv; ++v) {
          constexpr int64_t lanes = W * per_word<X>;
          const int64_t row = p.first + v * W;
          pack_transposed<X, C>(w_hr + p.offset<X>(L.H) + v * lanes, p.nv * lanes, hr + row * L.H, L.H, L.P - row, L.H);
        }
      }
    if (rank == 0)
      for (int g = 0; g < G; ++g)
        for (int64_t u = 0; u < Hp; u += W) {
          const bool apart = CELL == Cell::gru && g == 2;
          const int64_t n = L.H - u;
          Vec<C> of_x = b_ih ? load(b_ih + g * L.H + u, n) : Vec<C>{},
                 of_h = b_hh ? load(b_hh + g * L.H + u, n) : Vec<C>{};
          store(bias + g * Hp + u, apart ? of_x : of_x + of_h);
          if (apart) store(bias_hn + u, of_h);
        }
    for (int64_t j = part(L.N, rank, size); j < part(L.N, rank + 1, size); ++j) {
      int64_t first = 0;  // step
      if (L.resets.data)
        while (first < L.T && steps.active(first) <= j) ++first;
      const bool reset = is_reset(first, j);
      const S* h0 = static_cast<const S*>(L.h0) + (d * L.N + L.order[j]) * L.P;
      for (int64_t u = 0; u < h_ld - x_columns; u += W) {
        Vec<C> v = reset || u >= L.P ? Vec<C>{} : load(h0 + u, L.P - u);
        store(h[0] + j * h_ld + x_columns + u, v, h_ld - x_columns - u);
        store(h[1] + j * h_ld + x_columns + u, v, h_ld - x_columns - u);
      }
      for (int64_t u = 0; project && u < full_ld; u += W) store(full + j * full_ld + u, Vec<C>{});
      if constexpr (CELL == Cell::lstm) {
        const S* c0 = static_cast<const S*>(L.c0) + (d * L.N + L.order[j]) * L.H;
        for (int64_t u = 0; u < L.H; u += W) store(c + j * Hp + u, reset ? Vec<C>{} : load(c0 + u, L.H - u));
      }
    }
  }

  // x of step s, sequences j0..j1, beside their states before it.
  void lay_inputs(int64_t s, int64_t j0, int64_t j1) {
    for (int64_t j = j0; j < j1; ++j) lay(h[s & 1] + j * h_ld, at<const S>(L.input, L, steps.t(s), j));
  }
  INLINE void lay(X* to, const S* x) const {
    for (int64_t k = 0; k < depth<X>(L.I); k += W) store(to + k, load(x + k, L.I - k), depth<X>(L.I) - k);
  }

  // gates = x W_ih^T + bias for the `count` rows of a chunk that begins with step s, of the sequences j0..j1 and for
  // the panels p0..p1; `first` is where the group's rows begin in the buffers.
  void multiply_inputs(const Share& share, int64_t s, int64_t count, int64_t first, int64_t j0, int64_t j1, int64_t p0,
                       int64_t p1) {
    const X** in = rows + first;
    steps.for_rows(s, part(count, share.member, share.members), part(count, share.member + 1, share.members), j0, j1,
                   [&](int64_t row, int64_t now, int64_t j) {
                     const S* x = at<const S>(L.input, L, steps.t(now), j);
                     in[row] = reinterpret_cast<const X*>(x);
                     if (!staging) return;
                     X* copy = staged + (first + row) * depth<X>(L.I);
                     lay(copy, x);
                     in[row] = copy;
                   });
    barrier.wait(share.members);
    for (int64_t i = p0; i < p1; ++i) {
      auto panel = [&](int64_t k) { return units.panel(backwards(s) ? p0 + p1 - 1 - k : k); };
      const Panel p = panel(i);
      const int64_t across = this->across();
      Vec<C> add[kWide > G ? kWide : G];
      for (int v = 0; v < p.nv; ++v) add[v] = load(bias + p.first + v * across);
      weights.multiply_inputs(
          0, count, p, panel(i + 1 < p1 ? i + 1 : p0), [&](int64_t row) { return in[row]; },
          [&](int64_t row, int tall, const C* sums) {
            for (int r = 0; r < tall; ++r) {
              C* to = gates + (first + row + r) * gates_ld + p.first;
              for (int v = 0; v < p.nv; ++v, sums += W) store(to + v * across, load(sums) + add[v]);
            }
          });
    }
  }

  bool backwards(int64_t s) const { return (s & 1) != turned; }

  // From one register of a panel of gates to the next, in a row of gates.
  int64_t across() const { return G > 1 ? Hp : W; }

  // Whether the state of sequence j is zeroed before step s.
  bool is_reset(int64_t s, int64_t j) const {
    return L.resets.data && j < steps.active(s) && *at<const bool>(L.resets, L, steps.t(s), j);
  }

  // Where h of one sequence's step goes: to the user, to the next step (zeroed if that is reset), and to h_n if
  // the step is the sequence's last.
  struct Place {
    S *out, *h_n;
    X* next;
    bool reset;
    INLINE void put(Vec<C> value, int64_t column, int64_t n) const {
      store(out + column, value, n);
      Vec<C> read = std::is_same<X, S>::value ? value : rounded<S, C>(value);
      store(next + column, reset ? Vec<C>{} : read, n);
      if (__builtin_expect(h_n != nullptr, 0)) store(h_n + column, value, n);
    }
  };
  // Those of a step. (Copies: what the kernel stores might be its own fields, for all that the compiler knows.)
  struct Places {
    const ForwardKernel& kernel;
    const int64_t s, ended, lane, h_ld;
    S* const out;
    X* const next;
    const int64_t* const order;
    const bool resets;
    INLINE Places(const ForwardKernel& k, int64_t s)
        : kernel(k),
          s(s),
          ended(k.steps.ended(s)),
          lane(k.L.output.lane),
          h_ld(k.h_ld),
          out(static_cast<S*>(k.L.output.data) + k.L.output.step * k.L.place[k.steps.t(s)] + k.d * k.L.P),
          next(k.h[(s + 1) & 1] + k.x_columns),
          order(k.L.order),
          resets(k.L.resets.data != nullptr) {}
    INLINE Place operator()(int64_t j) const {
      S* h_n = nullptr;
      if (__builtin_expect(j >= ended, 0))
        h_n = static_cast<S*>(kernel.L.h_n) + (kernel.d * kernel.L.N + order[j]) * kernel.L.P;
      return {out + lane * order[j], h_n, next + j * h_ld, resets && kernel.is_reset(s + 1, j)};
    }
  };

  // Step s for the rows j0..j1 and one panel of units; x_gates: x W_ih^T + bias of sequence 0 in it, null where joint.
  void step(int rank, int64_t s, const C* x_gates, int64_t j0, int64_t j1, int64_t panel, int64_t next) {
    const X* before = h[s & 1] + (x_gates ? x_columns : 0);
    const Panel p = units.panel(panel);
    const int64_t hp = Hp;
    weights.multiply_step(
        !x_gates, rank, j0, j1, p, units.panel(next),
        [&](int64_t j) {
          // What the cell will need when the product is done.
          if (x_gates) {
            const C* of_x = x_gates + j * gates_ld + p.first;
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) __builtin_prefetch(of_x + g * hp);
          }
          if (CELL == Cell::lstm) __builtin_prefetch(c + j * hp + p.first, 1);
          if (saved_of(CELL) && L.gates.data) {
            const S* saved = at<S>(L.gates, L, steps.t(s), j) + d * L.gates_direction + p.first;
#pragma GCC unroll 4
            for (int g = 0; g < 4; ++g) __builtin_prefetch(saved + g * hp, 1);
            if (CELL == Cell::lstm) __builtin_prefetch(at<S>(L.cells, L, steps.t(s), j) + d * L.H + p.first, 1);
          }
          return before + j * h_ld;
        },
        [&](int64_t j, int tall, C* sums) { finish(s, x_gates, j, tall, p, sums); });
  }

  // The cell for a tile of the recurrent product: `tall` sequences from j on, the units of panel p. Two passes: the
  // tile's cells fill the pipeline together, each pass a shorter chain of dependent operations than the whole cell.
  INLINE void finish(int64_t s, const C* x_gates, int64_t j, int tall, const Panel& p, C* const sums) {
    const int64_t t = steps.t(s), hp = Hp;
    const int wide = G > 1 ? 1 : p.nv;
    const bool save = L.gates.data != nullptr, keep = L.cells.data != nullptr, projecting = project;
    const X* const h_prev = h[s & 1] + x_columns;
    const bool joint = !x_gates, with_bias = !joint;
    x_gates = joint ? sums + kTile<C> : x_gates + j * gates_ld + p.first;
    const int64_t x_ld = joint ? p.nv * W : gates_ld, x_across = joint ? W : across(), b_across = across();
    const C *const b = bias + p.first, *const b_hn = bias_hn + p.first;
    auto of_x = [&](int v) __attribute__((always_inline)) {
      const Vec<C> sum = load(x_gates + v * x_across);
      return with_bias ? sum : sum + load(b + v * b_across);
    };
    for (int r = 0; r < tall; ++r, x_gates += x_ld) {
      C* const pre = sums + r * p.nv * W;
      S* saved = save ? at<S>(L.gates, L, t, j + r) + d * L.gates_direction + p.first : nullptr;
      if constexpr (CELL == Cell::lstm) {
        Vec<C> gate[4], c_now;
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) gate[g] = load(pre + g * W) + of_x(g);
        C* state = c + (j + r) * hp + p.first;
        cells::lstm_state(gate[0], gate[1], gate[2], gate[3], load(state), c_now);
        store(state, c_now);
        store(pre, c_now);
        store(pre + W, gate[3]);
        if (save) {
#pragma GCC unroll 4
          for (int g = 0; g < 4; ++g) store(saved + g * hp, gate[g]);
        }
      } else if constexpr (CELL == Cell::gru) {
        Vec<C> reset = load(pre) + of_x(0), update = load(pre + W) + of_x(1), n = of_x(2),
               n_h = load(pre + 2 * W) + load(b_hn);
        cells::gru_gates(reset, update, n, n_h);
        store(pre, update);
        store(pre + W, n);
        if (save) {
          store(saved, reset);
          store(saved + hp, update);
          store(saved + 3 * hp, n_h);
        }
      } else {
        for (int v = 0; v < wide; ++v) store(pre + v * W, load(pre + v * W) + of_x(v));
      }
    }
    const Places places(*this, s);
    for (int r = 0; r < tall; ++r, ++j) {
      const Place to = places(j);
      for (int v = 0; v < wide; ++v) {
        const C* pre = sums + (r * p.nv + v) * W;
        const int64_t unit = p.first + v * W, n = L.H - unit;
        Vec<C> h_now;
        if constexpr (CELL == Cell::lstm) {
          const Vec<C> c_now = load(pre);
          h_now = cells::lstm_output(load(pre + W), c_now);
          if (keep) store(at<S>(L.cells, L, t, j) + d * L.H + unit, c_now, n);
          if (__builtin_expect(to.h_n != nullptr, 0))
            store(static_cast<S*>(L.c_n) + (d * L.N + L.order[j]) * L.H + unit, c_now, n);
          if (__builtin_expect(to.reset, 0)) store(c + j * hp + unit, Vec<C>{});
        } else if constexpr (CELL == Cell::gru) {
          Vec<C> n_now = load(pre + W);
          h_now = cells::gru_output(load(pre), n_now, load(h_prev + j * h_ld + unit));
          if (save) store(at<S>(L.gates, L, t, j) + d * L.gates_direction + 2 * hp + unit, n_now);
        } else {
          h_now = cells::rnn_forward<CELL == Cell::rnn_relu, Vec<C>>(load(pre));
        }
        if (projecting)
          store(full + j * full_ld + unit, h_now, n);
        else
          to.put(h_now, unit, n);
      }
    }
  }

  void project_step(int64_t s, int64_t j0, int64_t j1, int64_t panel, int64_t next) {
    const Panel p = projected.panel(panel);
    multiply_panel<C>(
        alone, j0, j1, p.nv, L.H, w_hr + p.offset<X>(L.H), w_hr + projected.panel(next).template offset<X>(L.H),
        [&](int64_t j) { return full + j * full_ld; },
        [&](int64_t j, int tall, const C* sums) {
          const Places places(*this, s);
          for (int r = 0; r < tall; ++r, ++j) {
            const Place to = places(j);
            for (int v = 0; v < p.nv; ++v, sums += W) to.put(load(sums), p.first + v * W, L.P - p.first - v * W);
          }
        });
  }
};

template <Cell CELL, class S>
void forward_cell(const Forward& layer) {
  const int64_t rows = count_rows(layer);
  Forward used = layer;
  used.threads = useful_threads(layer, rows, 1);
  for (int d = 0; d < layer.D; ++d) {
    ForwardKernel<CELL, S> kernel(used, d, rows);
    Carver size(nullptr);
    kernel.carve(size);
    Workspace workspace(size.used());
    Carver memory(workspace.data());
    kernel.carve(memory);
    run_team(used.threads, ForwardKernel<CELL, S>::body, &kernel);
  }
  steps_taken += layer.T;
}
