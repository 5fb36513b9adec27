// The gradients of a layer's weights: for each chunk, dgates^T times the inputs and times the states before each step.

// Where the gradients of a row's gates are stored: GRU as in GruPlanes, other cells in the order of the gates. Tiles
// read K in steps of 16 words. The last step of the input's three planes must not read a part of n_h, so the padding to
// whole steps comes before the planes.
template <class X, class C>
struct GatePlanes {
  static constexpr int kUnit = on_tiles<X> ? width<C> : per_word<X>;  // a plane is a multiple of this
  const bool split;                                                   // GRU
  const int count, first_hidden;
  const int64_t plane, lead, ld;  // columns of a plane, before the first plane, and of a row
  explicit GatePlanes(const Layer& layer)
      : split(splits_candidate(layer.cell)),
        count(gates_of(layer.cell) + split),
        first_hidden(split),
        plane((layer.H + kUnit - 1) / kUnit * kUnit),
        lead(split ? depth<X>((count - 1) * plane) - (count - 1) * plane : 0),
        ld(spread<X>(lead + first_hidden * plane + depth<X>((count - first_hidden) * plane))) {}
  int of_input(int gate) const { return split ? (gate == 2 ? GruPlanes::n : gate + 1) : gate; }
  int of_hidden(int gate) const { return gate + first_hidden; }
  int64_t column(int which) const { return lead + which * plane; }
};

// What the time loop stores of a chunk of steps. dgates and dprojected are operands of GEMMs, which may read the
// padding of planes and of K. The padding is zeroed once and never written again.
template <class X>
struct Chunk {
  X* dgates;      // [chunk_rows, planes.ld]
  X* dprojected;  // [chunk_rows, projected_ld], only with projection: the gradient of the projected h
  X* full;        // [chunk_rows, padded H], only with projection: h before the projection
};

template <class S>
class WeightGradients {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  using Planes = GatePlanes<X, C>;
  static constexpr int W = width<C>, height = kPackedColumns<X>;
  static constexpr int kRun = 64 / height;  // tiles of dgates that are packed at a time

  const BackwardPass<S>& pass;
  const Backward& L;
  const int d, G;  // direction, gates
  const Steps steps;
  const Planes planes;
  const Columns<X, C, kPackedWidth<X>> by_x, by_h, by_full;  // I, P and H columns
  const int64_t projected_ld, chunk_rows;
  const bool project;
  static constexpr int kFew = 4;
  const bool few;  // so few rows that nothing is packed, except for a projection

  // Gates whose planes follow one another without padding, in the gradients that meet x and in those that meet h. Their
  // rows of the weight gradients are computed together.
  struct Run {
    int64_t row, rows, x_column, h_column;  // of the weights; in a row of gate gradients
  };
  Run runs[4];
  int run_count = 0;

  X *packed_x[2], *packed_h[2], *packed_full[2];  // a chunk's x, h_prev and h before projection as panels
  C* sums[5];  // of w_ih w_hh b_ih b_hh w_hr over the chunks so far; the results themselves if they have type C

 public:
  static constexpr bool kNarrow = sizeof(S) != sizeof(C);  // the results have another type than the sums
  static constexpr int kOverread =
      height > W ? height : W;  // elements that may be read past the end of a chunk's dgates

  // Elements that add() needs to pack tiles of dgates.
  static int64_t transposed(const Backward& layer, int64_t chunk_rows) {
    return layer.want_weights ? kRun * height * depth<X>(chunk_rows) : 0;
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
        projected_ld(projected_ld),
        chunk_rows(chunk_rows),
        project(pass.project),
        few(!is_pair<X> && chunk_rows <= kFew) {
    for (int gate = 0; gate < G; ++gate) {
      const int64_t x_column = planes.column(planes.of_input(gate)), h_column = planes.column(planes.of_hidden(gate));
      Run* const last = runs + run_count - 1;
      if (gate && x_column == last->x_column + last->rows && h_column == last->h_column + last->rows)
        last->rows += L.H;
      else
        runs[run_count++] = {gate * L.H, L.H, x_column, h_column};
    }
  }

  void allocate(Arena& memory, int halves) {
    const bool want = L.want_weights;
    for (int half = 0; half < halves; ++half) {
      packed_x[half] = memory.take<X>(want ? by_x.packed(chunk_rows) : 0);
      packed_h[half] = memory.take<X>(want ? by_h.packed(chunk_rows) : 0);
      packed_full[half] = memory.take<X>(want && project ? by_full.packed(chunk_rows) : 0);
    }
    for (int i = 0; i < 5; ++i)
      sums[i] = !result(i) ? nullptr : kNarrow ? memory.take<C>(size_of(i)) : static_cast<C*>(result(i));
  }

  // Packs x and h_prev of the chunk of `count` rows that begins with step `begin`.
  void pack_operands(int half, int64_t begin, int64_t count, int rank, int size) {
    if (few) return;
    const int64_t all = words<X>(count), w0 = part(all, rank, size), w1 = part(all, rank + 1, size);
    const S *x[per_word<X>], *h[per_word<X>];  // the rows of one word
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

  // Adds a chunk's part to dW_ih, dW_hh, db and dW_hr, whose rows the threads divide. `packed` has transposed()
  // elements and is used by this thread only.
  void add(const Chunk<X>& chunk, int half, int64_t begin, int64_t count, bool first, X* packed, int rank, int size,
           Barrier& barrier) {
    if (few)
      with_rows<kFew>(static_cast<int>(count), [&](auto K) { add_few<K.value>(chunk, begin, first, rank, size); });
    else
      add_tiles(chunk, half, begin, count, first, packed, rank, size);
    divide_runs(W, rank, size, [&](const Run& run, int64_t v, int64_t last) {
      for (; sums[2] && v < last; ++v) {
        const int64_t unit = v * W, row = run.row + unit, n = run.rows - unit;
        Vec<C> sum = add_rows(chunk.dgates + run.x_column + unit, count, sums[2] + row, n, first);
        if (run.x_column == run.h_column)
          store(sums[3] + row, sum, n);
        else
          add_rows(chunk.dgates + run.h_column + unit, count, sums[3] + row, n, first);
      }
    });
    if (!project) return;
    for (int64_t word = part(words<X>(count), rank, size); word < part(words<X>(count), rank + 1, size); ++word)
      pack_word(packed_full[half], by_full, count, word, [&](int64_t row) { return chunk.full + row * padded(L.H); });
    barrier.wait(size);
    const int64_t projected_tiles = (L.P + height - 1) / height;
    for (int64_t tile = part(projected_tiles, rank, size), last = part(projected_tiles, rank + 1, size), tiles;
         tile < last; tile += tiles) {
      tiles = last - tile > kRun ? kRun : last - tile;
      pack_columns<X, C>(packed, chunk.dprojected + tile * height, projected_ld, tiles, count);
      add_product(packed, tiles, tile * height, L.P, by_full, packed_full[half], count, 0, sums[4], first);
    }
  }

  // Converts the sums to the results' type if kNarrow. Called after the last add() and a barrier.
  void write_results(int rank, int size) {
    for (int i = 0; i < 5; ++i) {
      if (!result(i)) continue;
      const int64_t last = part(size_of(i), rank + 1, size);
      for (int64_t k = part(size_of(i), rank, size); k < last; k += W)
        store(static_cast<S*>(result(i)) + k, load(sums[i] + k, last - k), last - k);
    }
  }

 private:
  // f(run, first, last) for each run and a thread's share of it, in pieces of `rows` rows.
  template <class F>
  INLINE void divide_runs(int64_t rows, int rank, int size, F&& f) const {
    auto pieces = [&](const Run& run) { return (run.rows + rows - 1) / rows; };
    int64_t all = 0;
    for (int i = 0; i < run_count; ++i) all += pieces(runs[i]);
    int64_t first = part(all, rank, size), last = part(all, rank + 1, size);
    for (int i = 0; i < run_count; ++i) {
      const int64_t n = pieces(runs[i]);
      f(runs[i], first > 0 ? first : 0, last < n ? last : n);
      first -= n;
      last -= n;
    }
  }

  // dW_ih and dW_hh in tiles of packed operands. Where the states before the first step are zero, its rows add nothing
  // to dW_hh, unless their gradients are infinite or NaN. Leaving them out means packing the other rows again.
  void add_tiles(const Chunk<X>& chunk, int half, int64_t begin, int64_t count, bool first, X* packed, int rank,
                 int size) {
    int64_t zeros = begin > 0 || L.h0 ? 0 : steps.active(0);
    zeros = 4 * zeros < count ? 0 : (zeros < count ? zeros : count - 1) / depth<X>(1) * depth<X>(1);
    divide_runs(height, rank, size, [&](const Run& run, int64_t tile, int64_t last) {
      for (int64_t tiles; tile < last; tile += tiles) {
        tiles = last - tile > kRun ? kRun : last - tile;
        const int64_t unit = tile * height;
        const X *x_part = chunk.dgates + run.x_column + unit, *h_part = chunk.dgates + run.h_column + unit;
        pack_columns<X, C>(packed, x_part, planes.ld, tiles, count);
        add_product(packed, tiles, unit, run.rows, by_x, packed_x[half], count, 0, sums[0] + run.row * L.I, first);
        const int64_t skipped = all_finite<C>(h_part, zeros, planes.ld, tiles * height) ? zeros : 0;
        if (x_part != h_part || skipped)
          pack_columns<X, C>(packed, h_part + skipped * planes.ld, planes.ld, tiles, count - skipped);
        add_product(packed, tiles, unit, run.rows, by_h, packed_h[half], count, skipped, sums[1] + run.row * L.P,
                    first);
      }
    });
  }

  // The same from K rows in place, which takes one pass over the results.
  template <int K>
  void add_few(const Chunk<X>& chunk, int64_t begin, bool first, int rank, int size) {
    const S *x[K], *h[K];
    steps.for_rows(begin, 0, K, 0, L.N, [&](int64_t row, int64_t s, int64_t j) {
      x[row] = at<const S>(L.input, L, steps.t(s), j);
      h[row] = pass.before(L.output, L.h0, L.P, s, j);
    });
    // into[columns] (+)= the sum over k of from[k * planes.ld] * b[k][columns]
    auto add_row = [&](const X* from, const S* const(&b)[K], int64_t columns, C* into) {
      Vec<C> gradient[K];
      for (int k = 0; k < K; ++k) gradient[k] = broadcast(C(value(from[k * planes.ld])));
      for (int64_t c = 0; c < columns; c += W) {
        const int64_t n = columns - c;
        Vec<C> sum{};
        for (int k = 0; k < K; ++k) sum += gradient[k] * (b[k] ? load(b[k] + c, n) : Vec<C>{});
        store(into + c, first ? sum : sum + load(into + c, n), n);
      }
    };
    divide_runs(1, rank, size, [&](const Run& run, int64_t unit, int64_t last) {
      for (; unit < last; ++unit) {
        add_row(chunk.dgates + run.x_column + unit, x, L.I, sums[0] + (run.row + unit) * L.I);
        add_row(chunk.dgates + run.h_column + unit, h, L.P, sums[1] + (run.row + unit) * L.P);
      }
    });
  }

  void* result(int i) const {
    const WeightGrads& w = L.grad_weights[d];
    void* const results[5] = {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr};
    return results[i];
  }
  int64_t size_of(int i) const {
    const int64_t sizes[5] = {G * L.H * L.I, G * L.H * L.P, G * L.H, G * L.H, L.P * L.H};
    return sizes[i];
  }

  // into[0..n) (+)= the sums over the chunk's rows of a register of gradients. Sums of 16 rows are added up: in one
  // chain over hundreds of rows every addition would round to the precision of the large total.
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

  // into[unit.., columns] (+)= packed^T B for a number of tiles, without the first `skipped` rows of B, which `packed`
  // does not have. Each panel of B is used for all tiles while it is in the L1 cache. But GEMMs of few rows take less
  // time than their results, which are then written in the order of memory.
  template <class ColumnPanels>
  void add_product(const X* packed, int64_t tiles, int64_t unit, int64_t units, const ColumnPanels& columns,
                   const X* panels, int64_t count, int64_t skipped, C* into, bool first) {
    const int64_t K = count - skipped, size = height * depth<X>(K), all = columns.panels();
    const bool by_rows = K <= 64 && units * columns.count * int64_t(sizeof(C)) >= kKept / 4;
    auto add_tile = [&](int64_t i, const Panel& p) __attribute__((always_inline)) {
      const X* panel = panels + p.offset<X>(count) + p.columns<C>() * skipped;
      const int64_t length = p.columns<C>() * depth<X>(K), share = by_rows ? 0 : length / tiles;
      Tile<C> tile;
      multiply_packed(p, packed + i * size, panel, K, tile, by_rows ? panel : panel + length + i * share, share);
      const C* sum = tile.sums;
      for (int64_t r = 0; r < height && unit + i * height + r < units; ++r) {
        C* to = into + (unit + i * height + r) * columns.count + p.first;
        for (int v = 0; v < p.nv; ++v, sum += W, to += W) {
          const int64_t n = columns.count - p.first - v * W;
          store(to, first ? load(sum) : load(sum) + load(to, n), n);
        }
      }
    };
    if (by_rows)
      for (int64_t i = 0; i < tiles; ++i)
        for (int64_t q = 0; q < all; ++q) add_tile(i, columns.panel(q));
    else
      for (int64_t q = 0; q < all; ++q) {
        const Panel p = columns.panel(q);
        for (int64_t i = 0; i < tiles; ++i) add_tile(i, p);
      }
  }
};
