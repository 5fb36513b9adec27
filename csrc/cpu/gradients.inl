// The gradients of a layer's weights: a chunk's dgates, transposed, times its inputs and its states before each step.

// Where the gradients of a row's gates are stored: GruPlanes, every other cell's gates in their order. Tiles take K in
// steps of 16 words; the input's three planes must not end with part of n_h, so what they lack of a whole step comes
// before them.
template <class X, class C>
struct GatePlanes {
  const bool split;  // GRU
  const int count, first_hidden;
  const int64_t plane, lead, ld;  // columns of a plane, before the first plane, of a row
  explicit GatePlanes(const Layer& layer)
      : split(splits_candidate(layer.cell)),
        count(gates_of(layer.cell) + split),
        first_hidden(split),
        plane((layer.H + width<C> - 1) / width<C> * width<C>),
        lead(split ? depth<X>((count - 1) * plane) - (count - 1) * plane : 0),
        ld(spread<X>(lead + first_hidden * plane + depth<X>((count - first_hidden) * plane))) {}
  int of_input(int gate) const { return split ? (gate == 2 ? GruPlanes::n : gate + 1) : gate; }
  int of_hidden(int gate) const { return gate + first_hidden; }
  int64_t column(int which) const { return lead + which * plane; }
};

// What the time loop leaves of a chunk of steps. dgates and dprojected are operands of products that may read what is
// not theirs of a row (padding of planes, of K): that is zero from the start and never written to.
template <class X>
struct Chunk {
  X* dgates;      // [chunk_rows, planes.ld]
  X* dprojected;  // [chunk_rows, projected_ld], with projection: dh behind it
  X* full;        // [chunk_rows, padded H], with projection: h before it
};

template <class S>
class WeightGradients {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  using Planes = GatePlanes<X, C>;
  static constexpr int W = width<C>, down = kDown<X>;
  static constexpr int kRun = 64 / down;  // tiles of gradients transposed at a time

  const BackwardPass<S>& pass;
  const Backward& L;
  const int d, G;  // direction, gates
  const Steps steps;
  const Planes planes;
  const Columns<C, kAcross<X>> by_x, by_h, by_full;  // I, P and H columns
  const int64_t vectors, projected_ld, chunk_rows;   // vectors: registers of H
  const bool project;

  X *packed_x[2], *packed_h[2], *packed_full[2];  // a chunk's x, h_prev and h before projection as panels
  C* sums[5];  // w_ih w_hh b_ih b_hh w_hr: running sums, the result itself where types agree

 public:
  static constexpr bool kNarrow = sizeof(S) != sizeof(C);  // the sums are not in the result's type
  static constexpr int kCut = down;  // elements that the last tile of a chunk's dgates may read past their end

  // Elements that add() needs for a run of tiles of gradients, transposed.
  static int64_t transposed(const Backward& layer, int64_t chunk_rows) {
    return layer.want_weights ? kRun * down * depth<X>(chunk_rows) : 0;
  }

  WeightGradients(const BackwardPass<S>& pass, int64_t projected_ld, int64_t chunk_rows)
      : pass(pass),
        L(pass.L),
        d(pass.d),
        G(gates_of(L.cell)),
        steps{L, d == 1},
        planes(L),
        by_x{L.I},
        by_h{L.P},
        by_full{L.H},
        vectors((L.H + W - 1) / W),
        projected_ld(projected_ld),
        chunk_rows(chunk_rows),
        project(pass.project) {}

  void allocate(Arena& memory, int halves) {
    const bool want = L.want_weights;
    for (int half = 0; half < halves; ++half) {
      packed_x[half] = memory.take<X>(want ? by_x.template packed<X>(chunk_rows) : 0);
      packed_h[half] = memory.take<X>(want ? by_h.template packed<X>(chunk_rows) : 0);
      packed_full[half] = memory.take<X>(want && project ? by_full.template packed<X>(chunk_rows) : 0);
    }
    for (int i = 0; i < 5; ++i)
      sums[i] = !result(i) ? nullptr : kNarrow ? memory.take<C>(size_of(i)) : static_cast<C*>(result(i));
  }

  // Packs x and h_prev of the chunk of `count` rows that begins with step `begin`.
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
    steps.for_rows(begin, w0 * per_word<X>, last, 0, L.N, [&](int64_t row, int64_t s, int64_t j) {
      const int64_t i = row % per_word<X>;
      x[i] = at<const S>(L.input, L, steps.t(s), j);
      h[i] = pass.before(L.output, L.h0, L.P, s, j);
      if (i + 1 == per_word<X> || row + 1 == count) pack(row - i);
    });
    while (word < w1) pack(word * per_word<X>);  // zeros
  }

  // Adds a chunk's part to dW_ih, dW_hh, db and dW_hr. Their rows are divided among the team; `packed`: transposed()
  // elements that no other thread uses.
  void add(const Chunk<X>& chunk, int half, int64_t count, bool first, X* packed, int rank, int size,
           Barrier& barrier) {
    const int64_t tall = (L.H + down - 1) / down;  // tiles of one gate
    for (int64_t tile = part(G * tall, rank, size), last = part(G * tall, rank + 1, size), tiles; tile < last;
         tile += tiles) {
      const int gate = static_cast<int>(tile / tall);
      tiles = (gate + 1) * tall < last ? (gate + 1) * tall - tile : last - tile;
      if (tiles > kRun) tiles = kRun;
      const int64_t unit = (tile - gate * tall) * down;
      const X* x_part = chunk.dgates + planes.column(planes.of_input(gate)) + unit;
      const X* h_part = chunk.dgates + planes.column(planes.of_hidden(gate)) + unit;
      pack_down<X, C>(packed, x_part, planes.ld, tiles, count);
      add_product(packed, tiles, unit, L.H, by_x, packed_x[half], count, sums[0] + gate * L.H * L.I, first);
      if (x_part != h_part) pack_down<X, C>(packed, h_part, planes.ld, tiles, count);
      add_product(packed, tiles, unit, L.H, by_h, packed_h[half], count, sums[1] + gate * L.H * L.P, first);
    }
    for (int64_t v = part(G * vectors, rank, size); sums[2] && v < part(G * vectors, rank + 1, size); ++v) {
      const int gate = static_cast<int>(v / vectors);
      const int64_t unit = v % vectors * W, x_column = planes.column(planes.of_input(gate)) + unit,
                    h_column = planes.column(planes.of_hidden(gate)) + unit;
      Vec<C> sum = add_rows(chunk.dgates + x_column, count, sums[2] + gate * L.H + unit, L.H - unit, first);
      if (x_column == h_column)
        store(sums[3] + gate * L.H + unit, sum, L.H - unit);
      else
        add_rows(chunk.dgates + h_column, count, sums[3] + gate * L.H + unit, L.H - unit, first);
    }
    if (!project) return;
    for (int64_t word = part(words<X>(count), rank, size); word < part(words<X>(count), rank + 1, size); ++word)
      pack_word(packed_full[half], by_full, count, word, [&](int64_t row) { return chunk.full + row * padded(L.H); });
    barrier.wait(size);
    const int64_t across = (L.P + down - 1) / down;
    for (int64_t tile = part(across, rank, size), last = part(across, rank + 1, size), tiles; tile < last;
         tile += tiles) {
      tiles = last - tile > kRun ? kRun : last - tile;
      pack_down<X, C>(packed, chunk.dprojected + tile * down, projected_ld, tiles, count);
      add_product(packed, tiles, tile * down, L.P, by_full, packed_full[half], count, sums[4], first);
    }
  }

  // The sums in the result's type, where kNarrow; after the last add() and a barrier.
  void write_results(int rank, int size) {
    for (int i = 0; i < 5; ++i) {
      if (!result(i)) continue;
      const int64_t last = part(size_of(i), rank + 1, size);
      for (int64_t k = part(size_of(i), rank, size); k < last; k += W)
        store(static_cast<S*>(result(i)) + k, load(sums[i] + k, last - k), last - k);
    }
  }

 private:
  void* result(int i) const {
    const WeightGrads& w = L.grad_weights[d];
    void* const results[5] = {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr};
    return results[i];
  }
  int64_t size_of(int i) const {
    const int64_t sizes[5] = {G * L.H * L.I, G * L.H * L.P, G * L.H, G * L.H, L.P * L.H};
    return sizes[i];
  }

  // into[0..n) (+)= the sums over the chunk's rows of a register of gradients, by runs of 16 rows: one chain over
  // hundreds of them would round at its full height every time.
  INLINE Vec<C> add_rows(const X* from, int64_t count, C* into, int64_t n, bool first) const {
    Vec<C> sum = first ? Vec<C>{} : load(into, n);
    for (int64_t begin = 0; begin < count; begin += 16) {
      Vec<C> run{};
      for (int64_t k = begin; k < begin + 16 && k < count; ++k) run += load(from + k * planes.ld);
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
        const int64_t share = p.nv * W * depth<X>(count) / tiles;
        multiply_packed(p.nv, packed + i * size, panel, count, tile, next, share);
        next += share;
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
};
