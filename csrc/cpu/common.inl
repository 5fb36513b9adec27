// How a team of threads shares a layer, and the panels of its gates. Included after gemm.h and pack.h.

// Panels of up to this many bytes together stay in a core's L2 cache from step to step and need no prefetch.
constexpr int64_t kKept = 1 << 20;

// How a team shares a layer. It divides the rows of the batch, which needs no barrier inside the time loop, or, if
// that is estimated to be faster (divides_rows in cost.h), the hidden units, with a barrier per step.
//
// Why there are no data races (ThreadSanitizer does not understand OpenMP and cannot check it):
// - Packed weights are written before the first barrier and only read after it. A panel that is used once is in the
//   memory of its thread.
// - In forward's time loop only one group writes the rows of its sequences (states and results) and its region of the
//   chunks' buffers, so groups may be at different chunks. Each member of a group writes other columns. A member reads
//   what another has written (inputs as operands, h of the step before) only after the barrier that follows the write,
//   and it is not overwritten before the next barrier (h[s & 1]).
// - In backward all groups work on the same chunk. Only one group writes the rows of its sequences while the chunk
//   lasts. After a barrier the next chunk may divide the sequences differently.
// - If backward has several chunks, they alternate between two buffers. The GEMMs that read one buffer run while the
//   next chunk fills the other, and the barrier after that chunk comes before the first buffer is filled again.
// - The rows of the weight gradients and the rows (or columns) of dx are divided among all threads, and one thread
//   writes each.
struct Share {
  int groups, members;  // row groups, members of each
  int group, member;
  Share(int rank, int size, bool rows) {
    groups = rows ? size : 1;
    members = rows ? 1 : size;
    group = rank / members;
    member = rank % members;
  }
  struct Sequences {
    int64_t j0, j1;
  };
  // The sequences whose steps [begin, end) this group computes.
  Sequences sequences(const Steps& steps, int64_t begin, int64_t end) const {
    const int64_t N = steps.layer.N, *active = steps.layer.active;
    if (groups == 1) return {0, N};
    const int64_t t0 = steps.reversed ? steps.layer.T - end : begin, t1 = t0 + end - begin;
    if (active[t0] == active[t1 - 1])
      return {part(active[t0], group, groups), group + 1 < groups ? part(active[t0], group + 1, groups) : N};
    // Sequences are sorted by length, so equal counts are not equal work. Find the smallest cost that no group exceeds.
    auto place = [&](int index, int64_t most) {  // group `index` begins here if each one before it costs at most `most`
      int64_t j = 0, stop = t1;                  // the end of sequence j
      for (int g = 0; g < index; ++g)
        for (int64_t cost = 0; j < N; ++j) {
          while (stop > t0 && active[stop - 1] <= j) --stop;
          cost += cost ? stop - t0 : (stop - t0) * (1 + kReading);
          if (cost > most) break;
        }
      return j;
    };
    int64_t low = (t1 - t0) * (1 + kReading), high = (t1 - t0) * (N + kReading);
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (place(groups, middle) == N)
        high = middle;
      else
        low = middle + 1;
    }
    return {place(group, high), place(group + 1, high)};
  }
};

inline int64_t count_rows(const Layer& layer) {
  int64_t rows = 0;
  for (int64_t t = 0; t < layer.T; ++t) rows += layer.active[t];
  return rows;
}

// Row length in a buffer of the kernel. Rows whose distance is a multiple of 1 KiB map to the same sets of the L1
// cache, so such lengths get one more cache line.
template <class X>
constexpr int64_t spread(int64_t columns) {
  return columns * sizeof(X) % 1024 == 0 ? columns + 64 / sizeof(X) : columns;
}

// Panels of the gate GEMMs. A panel holds all gates of its units next to each other, so that one tile of sums has
// everything that the cell needs. For a gated cell it has up to a register of units per gate, for the RNN, which has
// one gate, several registers of units. These are the parts of a panel. They follow one another without gaps, so the
// last panel may be narrow: with 4 units, the 4 gates of the LSTM take one register of 16.
template <class X, class C>
struct GatePanels {
  static constexpr int W = width<C>;
  int64_t H;
  int G;  // gates
  int64_t panels() const { return G > 1 ? (H + W - 1) / W : rnn().panels(); }
  Panel panel(int64_t index) const {
    if (G == 1) return rnn().panel(index);
    const int64_t first = index * W;
    if (first + W <= H) return {first, G, false};
    const int64_t columns = G * units(first);
    return {first, static_cast<int>((columns + W - 1) / W), has_short<X> && columns <= W / 2};
  }
  int64_t offset(const Panel& p, int64_t K) const { return p.offset<X>(K, G); }
  int64_t largest(int64_t K) const { return (G > 1 ? G : kWide) * W * depth<X>(K); }  // elements of a panel
  int64_t packed(int64_t K) const {
    const Panel last = panel(panels() - 1);
    return offset(last, K) + last.columns<C>() * depth<X>(K);
  }
  // A row of sums of all panels, one after the other in whole registers: its length, and where a panel begins.
  int64_t row_length() const {
    const Panel last = panel(panels() - 1);
    return column(last) + last.nv * W;
  }
  int64_t column(const Panel& p) const { return p.first * G; }

  int parts(const Panel& p) const { return G > 1 ? G : p.nv; }
  // Columns from one part to the next.
  int64_t across(const Panel& p) const { return G > 1 ? units(p.first) : W; }
  // The row of the weights [G*H, K] at which a part begins, and how many rows its gate has from there on.
  int64_t row(const Panel& p, int part) const { return G > 1 ? part * H + p.first : p.first + part * W; }
  int64_t rows(const Panel& p, int part) const { return H - p.first - (G > 1 ? 0 : part * W); }

  // One panel [k][part][units] of w [G*H, K].
  template <class S>
  void pack(X* to, const Panel& p, const S* w, int64_t K) const {
    if (rows(p, parts(p) - 1) >= W) {  // each part is a whole register
      for (int part = 0; part < parts(p); ++part) {
        const S* lanes[W];
        for (int l = 0; l < W; ++l) lanes[l] = w + (row(p, part) + l) * K;
        pack_transposed<X, C>(to + part * W * per_word<X>, p, lanes, K);
      }
      return;
    }
    int part = 0;
    int64_t unit = 0;
    pack_transposed<X, C>(to, p, K, [&](int64_t) {  // the columns in rising order
      if (unit == across(p)) ++part, unit = 0;
      const S* const from = part < parts(p) && unit < rows(p, part) ? w + (row(p, part) + unit) * K : nullptr;
      ++unit;
      return from;
    });
  }

 private:
  Columns<X, C, kWide> rnn() const { return {H}; }
  int64_t units(int64_t first) const { return H - first < W ? H - first : W; }
};

// Prepares a thread for GEMMs of X. Released by the destructor.
template <class X>
struct Products {};
#if LSTMKERN_BF16 == 2
template <>
struct Products<bf16> : TileScope {};
#endif

// What the cost model (cost.h) knows of every pass.
template <class S>
Work work_of_pass(const Layer& layer, int64_t rows) {
  using X = typename Types<S>::Operand;
  Work w{};
  w.cell = layer.cell;
  w.T = layer.T, w.N = layer.N, w.rows = rows, w.I = layer.I, w.H = layer.H, w.P = layer.P;
  w.project = layer.weights[0].w_hr != nullptr;
  w.lanes = width<typename Types<S>::Sum>;
  w.registers = kSums;
  w.per_word = per_word<X>;
  w.tiles = on_tiles<X>;
  return w;
}
