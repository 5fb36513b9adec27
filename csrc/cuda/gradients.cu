// dx, dW and db from the results of backward's time loop (gradients.h).
#include "gradients.h"

namespace lstmkern {
namespace cuda {
namespace {

// --- kernels ---

// to = from, [rows, columns].
template <class S>
LSTMKERN_KERNEL(kThreads)
copy_rows(S* to, const S* from, int64_t rows, int64_t columns) {
  constexpr int V = kPer16<S>;
  for_pieces<V>(rows, columns, [&](int64_t row, int64_t column, int n) {
    Compute<S> v[V];
    load(v, from + row * columns + column, n);
    store(to + row * columns + column, v, n);
  });
}

// Copies the input with zeros for padding. Padding may hold any value, and zero times NaN is NaN.
template <class S>
LSTMKERN_KERNEL(kThreads)
without_padding(Rows<S> to, Rows<const S> from, int64_t T, int64_t N, int64_t columns, Mask mask) {
  constexpr int V = kPer16<S>;
  for_pieces<V>(T * N, columns, [&](int64_t row, int64_t column, int n) {
    const int64_t t = row / N, j = row % N;
    Compute<S> v[V] = {};
    if (mask.takes({t, t, N}, j)) load(v, from.at(t, j) + column, n);
    store(to.at(t, j) + column, v, n);
  });
}

// Sets dx of padding to zero. The matrix product gives NaN there if a weight is infinite.
template <class S>
LSTMKERN_KERNEL(kThreads)
clear_padding(Rows<S> rows, int64_t T, int64_t N, int64_t columns, Mask mask) {
  constexpr int V = kPer16<S>;
  for_pieces<V>(T * N, columns, [&](int64_t row, int64_t column, int n) {
    const int64_t t = row / N, j = row % N;
    const Compute<S> zeros[V] = {};
    if (!mask.takes({t, t, N}, j)) store(rows.at(t, j) + column, zeros, n);
  });
}

// to = sums, or with `more` to += sums, rounded once to 16 bits.
template <class S>
LSTMKERN_KERNEL(kThreads)
narrow_sums(S* to, const Compute<S>* sums, int64_t count, bool more) {
  constexpr int V = kPer16<S>;
  for_pieces<V>(1, count, [&](int64_t, int64_t at, int n) {
    Compute<S> v[V];
    load(v, sums + at, n);
    if (more) add(v, to + at, n);
    store(to + at, v, n);
  });
}

// Column sums in an order that depends only on the sizes. Step 1: sums of `chunks` runs of rows, [chunks, columns]. A
// block sums 32 pieces of columns; its 8 warps take the rows in turn.
constexpr int kSumWarps = 8;

template <class S>
LSTMKERN_KERNEL(32 * kSumWarps)
sum_rows(Compute<S>* sums, const S* from, int64_t rows, int64_t columns, int64_t chunks) {
  using C = Compute<S>;
  constexpr int V = kPer16<S>, kAcross = 32 * V;
  LSTMKERN_SHARED(C, shared, kSumWarps * kAcross);
  const int lane = static_cast<int>(lane_index()), warp = static_cast<int>(warp_index());
  const int64_t column = (static_cast<int64_t>(block_index().x) * 32 + lane) * V, chunk = block_index().y;
  const int n = columns - column >= V ? V : columns > column ? static_cast<int>(columns - column) : 0;
  C sum[V] = {};
  for (int64_t row = rows * chunk / chunks + warp; row < rows * (chunk + 1) / chunks; row += kSumWarps)
    add(sum, from + row * columns + column, n);
  store(shared + warp * kAcross + lane * V, sum, V);
  sync_block();
  for (int k = static_cast<int>(thread_rank()); k < kAcross; k += 32 * kSumWarps) {
    const int64_t at = static_cast<int64_t>(block_index().x) * kAcross + k;
    if (at >= columns) break;
    C total = 0;
    for (int w = 0; w < kSumWarps; ++w) total += shared[w * kAcross + k];
    sums[chunk * columns + at] = total;
  }
}

// Step 2: the sum of the chunks, stored in the gradients of both biases.
template <Cell CELL, class S>
LSTMKERN_KERNEL(kThreads)
bias_gradients(S* b_ih, S* b_hh, const Compute<S>* sums, int64_t H, int64_t chunks) {
  using C = Compute<S>;
  constexpr int planes = kPlanes<CELL>;
  for_pieces<1>(planes, H, [&](int64_t plane, int64_t unit, int) {
    C total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += sums[(i * planes + plane) * H + unit];
    // GRU: planes n r z n_h are the gates 2 0 1 and 2.
    const int64_t gate = CELL == Cell::gru ? (plane + 2) % 3 : plane;
    if (CELL != Cell::gru || plane < 3) narrow(total, b_ih[gate * H + unit]);
    if (CELL != Cell::gru || plane > 0) narrow(total, b_hh[gate * H + unit]);
  });
}

// --- products ---

template <class S>
constexpr bool kNarrow = sizeof(S) < sizeof(Compute<S>);

// How many rows of a result have sums that fit into Scratch::product.
inline int64_t rows_at_once(int64_t rows, int64_t columns) {
  const int64_t fit = larger(kProductBytes / 4 / columns / 8, 1) * 8;  // whole 16-byte pieces, also where transposed
  return rows < fit ? rows : fit;
}

inline Matrix rows_from(const Matrix& m, int64_t first, int64_t rows, int bytes) {
  Matrix part = m;
  part.data = static_cast<char*>(m.data) + first * (m.transposed ? 1 : m.stride) * bytes;
  part.rows = rows;
  return part;
}

template <Cell CELL, class S>
class Gradients {
  using C = Compute<S>;
  static constexpr int G = kGates<CELL>, planes = kPlanes<CELL>;

  const Backward& L;
  const Trace<S>& trace;
  const Scratch& scratch;
  const Numbering all;

 public:
  Gradients(const Backward& layer, const Trace<S>& trace, const Scratch& scratch)
      : L(layer), trace(trace), scratch(scratch), all(layer) {}

  // to [a.rows, b.columns], contiguous: to = a b, or with `more` to += a b.
  void multiply(const Call& call, void* to, const Matrix& a, const Matrix& b, bool more) {
    const int64_t columns = b.columns;
    S* const out = static_cast<S*>(to);
    if constexpr (kNarrow<S>) {
      C* const sums = static_cast<C*>(scratch.product);
      const int64_t rows = rows_at_once(a.rows, columns);
      for (int64_t first = 0; first < a.rows; first += rows) {
        const int64_t n = a.rows - first < rows ? a.rows - first : rows;
        call.products->multiply(matrix(sums, n, columns, columns), rows_from(a, first, n, sizeof(S)), b, false);
        launch("narrow_sums", narrow_sums<S>, cover(1, n * columns, kPer16<S>, call.stream), out + first * columns,
               static_cast<const C*>(sums), n * columns, more);
      }
    } else {
      call.products->multiply(matrix(out, a.rows, columns, columns), a, b, more);
    }
  }

  // dx = dgates W_ih; the second direction adds to the first.
  void input_gradient(int d, const Call& call) {
    const int64_t H = L.H, I = L.I;
    const S* weights = static_cast<const S*>(L.weights[d].w_ih);
    if (CELL == Cell::gru) {  // in the planes' order
      S* w_ih = static_cast<S*>(scratch.w_ih);
      launch("copy_rows", copy_rows<S>, cover(H, I, kPer16<S>, call.stream), w_ih, weights + 2 * H * I, H, I);
      launch("copy_rows", copy_rows<S>, cover(2 * H, I, kPer16<S>, call.stream), w_ih + H * I, weights, 2 * H, I);
      weights = w_ih;
    }
    multiply(call, L.grad_input.data, matrix(trace.dgates, all.count, G * H, planes * H), matrix(weights, G * H, I, I),
             d > 0);
    if (L.lengths && d + 1 == L.D)
      launch("clear_padding", clear_padding<S>, cover(all.count, I, kPer16<S>, call.stream),
             all.rows(static_cast<S*>(L.grad_input.data), I), L.T, L.N, I, mask_of(L));
  }

  // to [rows, columns] = a^T b over all rows. a is [count, rows], its rows `a_stride` elements apart.
  void over_rows(const Call& call, void* to, const S* a, int64_t rows, int64_t a_stride, const S* b, int64_t columns) {
    multiply(call, to, transpose(matrix(a, all.count, rows, a_stride)), matrix(b, all.count, columns, columns), false);
  }

  void weight_gradients(int d, const Call& call) {
    const S *dgates = trace.dgates, *input = static_cast<const S*>(scratch.input);
    C* sums = static_cast<C*>(scratch.sums);
    const int64_t chunks = scratch.chunks;
    const WeightGrads& w = L.grad_weights[d];
    const int64_t H = L.H, I = L.I, P = L.P, ld = planes * H;
    const S* x = static_cast<const S*>(L.input.data);
    if (L.lengths) {
      if (d == 0)
        launch("without_padding", without_padding<S>, cover(all.count, I, kPer16<S>, call.stream),
               all.rows(static_cast<S*>(scratch.input), I), rows_of<const S>(L.input), L.T, L.N, I, mask_of(L));
      x = input;
    }
    if (CELL == Cell::gru) {
      over_rows(call, w.w_ih, dgates + H, 2 * H, ld, x, I);
      over_rows(call, static_cast<S*>(w.w_ih) + 2 * H * I, dgates, H, ld, x, I);
    } else {
      over_rows(call, w.w_ih, dgates, G * H, ld, x, I);
    }
    over_rows(call, w.w_hh, dgates + kHiddenPlane<CELL> * H, G * H, ld, trace.h_before, P);
    if (w.w_hr) over_rows(call, w.w_hr, trace.d_output, P, P, trace.full, H);
    if (!w.b_ih) return;
    Launch config;
    config.block = {32, kSumWarps, 1};
    const int64_t across = 32 * kPer16<S>;
    config.grid = {static_cast<unsigned>((ld + across - 1) / across), static_cast<unsigned>(chunks), 1};
    config.stream = call.stream;
    launch("sum_rows", sum_rows<S>, config, sums, dgates, all.count, ld, chunks);
    launch("bias_gradients", bias_gradients<CELL, S>, cover(planes, H, 1, call.stream), static_cast<S*>(w.b_ih),
           static_cast<S*>(w.b_hh), static_cast<const C*>(sums), H, chunks);
  }
};

struct Measure {
  const Backward& layer;
  Workspace& memory;
  Scratch scratch;
  template <Cell CELL, class S>
  void run() {
    constexpr int G = kGates<CELL>;
    const int64_t rows = rows_of_steps(layer);
    const bool want = layer.want_weights;
    scratch.chunks = rows < 128 ? 1 : rows < 64 * 128 ? rows / 128 : 64;
    scratch.input = memory.allocate<S>(want && layer.lengths ? rows * layer.I : 0);
    scratch.w_ih = memory.allocate<S>(CELL == Cell::gru && layer.grad_input.data ? G * layer.H * layer.I : 0);
    const bool bias = want && layer.grad_weights[0].b_ih;
    scratch.sums = memory.allocate<Compute<S>>(bias ? scratch.chunks * kPlanes<CELL> * layer.H : 0);
    if (!kNarrow<S>) return;
    int64_t product = 0;
    const auto reserve = [&](bool needed, int64_t rows, int64_t columns) {
      if (needed) product = larger(product, rows_at_once(rows, columns) * columns);
    };
    reserve(layer.grad_input.data, rows, layer.I);
    reserve(want, G * layer.H, layer.I);
    reserve(want, G * layer.H, layer.P);
    reserve(want && layer.weights[0].w_hr, layer.P, layer.H);
    scratch.product = memory.allocate<float>(product);
  }
};

struct Run {
  const Backward& layer;
  int d;
  const void* trace;
  const Scratch& scratch;
  const Call& call;
  template <Cell CELL, class S>
  void run() {
    Gradients<CELL, S> g(layer, *static_cast<const Trace<S>*>(trace), scratch);
    if (layer.grad_input.data) g.input_gradient(d, call);
    if (layer.want_weights) g.weight_gradients(d, call);
  }
};

}  // namespace

Scratch allocate_scratch(const Backward& layer, Workspace& memory) {
  Measure measure{layer, memory, {}};
  for_kind(layer, measure);
  return measure.scratch;
}

void gradients(const Backward& layer, int d, const void* trace, const Scratch& scratch, const Call& call) {
  for_kind(layer, Run{layer, d, trace, scratch, call});
}

}  // namespace cuda
}  // namespace lstmkern
