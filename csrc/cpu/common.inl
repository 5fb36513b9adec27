// How a team of threads shares a layer, and the panels of its gates. After gemm.h and pack.h.

// Panels of up to this many bytes in all stay in a core's L2 cache from step to step and need no prefetch.
constexpr int64_t kKept = 1 << 20;

// Reading the weights takes about as long as computing this many rows: they come from the farthest memory.
constexpr int64_t kReading = 3;

// Whether a team divides the rows of a batch, given the weights that a step reads and the panels that they make. With 8
// rows a thread, yes, while the second-level cache holds the weights. From beyond it every thread would read all of
// them at every step, which takes as long as the products of `reading` rows. Dividing the hidden units, each reads its
// own, but panels leave the last thread less than its share and there is the `exchange` to pay for, in parts of the
// products: a barrier per step and what the others have computed (measured: docs/benchmarks/findings.md).
template <class X>
bool divides_rows(int64_t N, int size, int64_t bytes, int64_t panels, double exchange) {
  const int64_t held = on_tiles<X> ? 7 << 18 : 5 << 19, tallest = (panels + size - 1) / size;
  if (N < 8 * size || bytes <= held) return N >= 8 * size;
  const double rows = double(N) / size, reading = on_tiles<X> ? 16 : kReading, busy = double(panels) / (tallest * size);
  return rows + reading <= (1 + exchange) * (rows + reading / size) / busy;
}

// How a team shares a layer: by rows of the batch, which needs no barrier inside the time loop, or by hidden units
// with a barrier per step, where rows are too few (divides_rows) and where there is only one step.
//
// Why no two threads meet (ThreadSanitizer cannot say: it does not see into OpenMP). Packed weights are written before
// the first barrier and only read after it; a panel that is used once is its thread's own. In forward's time loop a
// group owns its sequences' rows of states and results and a region of the chunks' buffers, so groups need not be at
// the same chunk; its members own columns, and what one of them reads of another's, inputs as operands or h of the step
// before, was written before the last barrier and is not overwritten until after the next one (h[s & 1]).
// Backward's chunks are everybody's: a group owns its sequences' rows as long as the chunk lasts, and the next chunk,
// after a barrier, may divide them differently. Its chunks, where there are several, take turns between two halves of
// their buffers: the products that read one half run while the next chunk fills the other, and the barrier after that
// chunk comes before this half is filled again. The weight gradients' rows and dx's rows (or columns) are divided
// again, each written by one thread.
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
  // Those that the group takes through steps [begin, end).
  Sequences sequences(const Steps& steps, int64_t begin, int64_t end) const {
    const int64_t N = steps.layer.N, *active = steps.layer.active;
    if (groups == 1) return {0, N};
    const int64_t t0 = steps.reversed ? steps.layer.T - end : begin, t1 = t0 + end - begin;
    if (active[t0] == active[t1 - 1])
      return {part(active[t0], group, groups), group + 1 < groups ? part(active[t0], group + 1, groups) : N};
    // Sequences are sorted by length, so equal counts are not equal work: the least cost is sought that no group
    // exceeds.
    auto place = [&](int index, int64_t most) {  // where each before it takes what costs at most that
      int64_t j = 0, stop = t1;                  // of sequence j
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

// The number of threads that is worth using for `products` GEMMs with each weight matrix.
inline int useful_threads(const Layer& layer, int64_t rows, int products) {
#if defined(__SANITIZE_ADDRESS__)
  return layer.threads;  // so that tests of small layers are tests of teams
#endif
  // Below about half a million multiplications a thread's wake-up costs more than its work.
  int64_t work = products * (rows + kReading) * gates_of(layer.cell) * layer.H * (layer.I + layer.P) / 500000;
  return work < layer.threads ? (work < 1 ? 1 : static_cast<int>(work)) : layer.threads;
}

inline int64_t count_rows(const Layer& layer) {
  int64_t rows = 0;
  for (int64_t t = 0; t < layer.T; ++t) rows += layer.active[t];
  return rows;
}

// Row length in a buffer of the kernel: rows a multiple of 1 KiB apart would map to the same sets of the L1 cache, so
// such lengths get one more cache line.
template <class X>
constexpr int64_t spread(int64_t columns) {
  return columns * sizeof(X) % 1024 == 0 ? columns + 64 / sizeof(X) : columns;
}

// Panels of the gate GEMMs. They hold all gates of the same units next to each other, so that the cell is finished in
// registers. A gated cell takes one register of units for each gate; the RNN, with one gate, several registers of
// units.
template <class X, class C>
struct GatePanels {
  int64_t H;
  int G;  // gates
  int64_t panels() const { return G > 1 ? (H + width<C> - 1) / width<C> : Columns<C, kWide>{H}.panels(); }
  int64_t packed(int64_t K) const { return (H + width<C> - 1) / width<C> * width<C> * G * depth<X>(K); }
  int64_t offset(const Panel& p, int64_t K) const { return p.offset<X>(K, G); }
  Panel panel(int64_t index) const {  // nv: G times the registers of units
    return G > 1 ? Panel{index * width<C>, G} : Columns<C, kWide>{H}.panel(index);
  }
  int64_t largest(int64_t K) const { return (G > 1 ? G : kWide) * width<C> * depth<X>(K); }  // panel
  // Register v of a panel: its gate, and its first unit.
  int gate(int v) const { return G > 1 ? v : 0; }
  int64_t unit(const Panel& p, int v) const { return G > 1 ? p.first : p.first + v * width<C>; }
  // One panel [k][gate][units] of w [G*H, K].
  template <class S>
  void pack(X* to, const Panel& p, const S* w, int64_t K) const {
    constexpr int64_t lanes = width<C> * per_word<X>;
    for (int v = 0; v < p.nv; ++v)
      pack_transposed<X, C>(to + v * lanes, p.nv * lanes, w + (gate(v) * H + unit(p, v)) * K, K, H - unit(p, v), K);
  }
};

// Prepares a thread for GEMMs of X while it lives.
template <class X>
struct Products {};
#if LSTMKERN_BF16 == 2
template <>
struct Products<bf16> : TileScope {};
#endif
