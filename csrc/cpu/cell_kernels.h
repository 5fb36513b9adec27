// The interface between the kernels for all cells and the code of one cell, which computes the cell for a tile of a
// step's sums. Everything else (GEMMs, packing, threads, weight gradients) is compiled once for all cells. Included
// after steps.h.

// ---- memory of a pass ----

// A layer's forward pass in one direction: what a step reads and writes besides the weights.
template <class S>
struct ForwardPass {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const Forward& L;
  const int d;
  const Steps steps;
  const bool project;
  const int64_t Hp, x_columns, h_ld, full_ld;

  C *bias, *bias_hn;  // b_ih + b_hh in the order of a row of sums (GatePanels); [Hp]: GRU's b_hn, not added to b_in
  // Rows of operands. A GEMM may read the padding of a row up to whole words, and 0 * inf is NaN. So the padding is
  // zeroed once and never written again.
  X *h[2], *full;  // [N, h_ld] each: the states before and after a step, in joint steps preceded by x;
                   // [N, full_ld]: h before the projection
  C* c;            // [N, Hp], LSTM

  // Whether the state of sequence j is zeroed before step s.
  bool is_reset(int64_t s, int64_t j) const {
    return L.resets.data && j < steps.active(s) && *at<const bool>(L.resets, L, steps.t(s), j);
  }
};

// Where h of one sequence's step is stored: in the output, as the next step's state (zeroed if that step is reset), and
// in h_n if the step is the sequence's last.
template <class S>
struct HiddenRow {
  S *out, *h_n;
  typename Types<S>::Operand* next;
  bool reset;
  INLINE void store_h(Vec<typename Types<S>::Sum> value, int64_t column, int64_t n) const {
    using C = typename Types<S>::Sum;
    store(out + column, value, n);
    Vec<C> read = std::is_same<typename Types<S>::Operand, S>::value ? value : rounded<S, C>(value);
    store(next + column, reset ? Vec<C>{} : read, n);
    if (__builtin_expect(h_n != nullptr, 0)) store(h_n + column, value, n);
  }
};

// The rows of a step. (Members are copies, because the compiler must assume that a kernel's stores change the pass.)
template <class S>
struct HiddenRows {
  using X = typename Types<S>::Operand;
  const ForwardPass<S>& pass;
  const int64_t s, ended, lane, h_ld;
  S* const out;
  X* const next;
  const int64_t* const order;
  const bool resets;
  INLINE HiddenRows(const ForwardPass<S>& pass, int64_t s)
      : pass(pass),
        s(s),
        ended(pass.steps.ended(s)),
        lane(pass.L.output.lane),
        h_ld(pass.h_ld),
        out(static_cast<S*>(pass.L.output.data) + pass.L.output.step * pass.L.place[pass.steps.t(s)] +
            pass.d * pass.L.P),
        next(pass.h[(s + 1) & 1] + pass.x_columns),
        order(pass.L.order),
        resets(pass.L.resets.data != nullptr) {}
  INLINE HiddenRow<S> operator()(int64_t j) const {
    S* h_n = nullptr;
    if (__builtin_expect(j >= ended, 0)) h_n = static_cast<S*>(pass.L.h_n) + (pass.d * pass.L.N + order[j]) * pass.L.P;
    return {out + lane * order[j], h_n, next + j * h_ld, resets && pass.is_reset(s + 1, j)};
  }
};

// A layer's backward pass in one direction: what a step reads and writes besides the weights.
template <class S>
struct BackwardPass {
  using C = typename Types<S>::Sum;
  using X = typename Types<S>::Operand;
  const Backward& L;
  const int d;
  const Steps steps;
  const bool project;
  const int64_t Hp;
  // Columns in a row of gate gradients: of one gate's plane, before the first plane, and of the row.
  const int64_t plane, lead, dgates_ld;
  C* carry;  // [N, Hp]: dc, or GRU's direct part of dh

  bool is_reset(int64_t s, int64_t j) const { return L.resets.data && *at<const bool>(L.resets, L, steps.t(s), j); }

  // Whether a reset keeps the gradient of step s + 1 from reaching step s.
  bool cut(int64_t s, int64_t j) const { return j < steps.active(s + 1) && is_reset(s + 1, j); }

  // The row of `view` (output or cells) that was the state before step s, `initial` before the first step, null where
  // it is zero: after a reset, or without an initial state.
  INLINE const S* before(const View& view, const void* initial, int64_t columns, int64_t s, int64_t j) const {
    if (is_reset(s, j) || (!initial && j >= steps.begun(s))) return nullptr;
    if (j >= steps.begun(s)) return static_cast<const S*>(initial) + (d * L.N + L.order[j]) * columns;
    return at<const S>(view, L, steps.t(s - 1), j) + d * columns;
  }
};

// A row of gate gradients has a plane for each gate, in the order of the gates. GRU's n has two planes, because its
// recurrent part n_h has a separate gradient. They are stored as n r z n_h, so that the three for the input (n r z) and
// the three for the state before the step (r z n_h) are each contiguous.
struct GruPlanes {
  static constexpr int n = 0, r = 1, z = 2, n_h = 3;
};

// The gradients that reach h of one sequence's step in addition to the recurrent GEMM: those of the output and of h_n.
template <class S>
struct IncomingRow {
  using C = typename Types<S>::Sum;
  const S *grad_output, *grad_h_n;  // null: none
  bool cut;
  INLINE IncomingRow(const BackwardPass<S>& pass, int64_t s, int64_t j) : cut(pass.cut(s, j)) {
    const Backward& L = pass.L;
    grad_output = L.grad_output.data ? at<const S>(L.grad_output, L, pass.steps.t(s), j) + pass.d * L.P : nullptr;
    grad_h_n = L.grad_h_n && j >= pass.steps.ended(s)
                   ? static_cast<const S*>(L.grad_h_n) + (pass.d * L.N + L.order[j]) * L.P
                   : nullptr;
  }
  // dh without what the cell adds: `sum` from the recurrent GEMM, and the gradients of the output and of h_n.
  INLINE Vec<C> add_to(Vec<C> sum, int64_t column, int64_t n) const {
    if (cut) sum = Vec<C>{};
    if (grad_output) sum += load(grad_output + column, n);
    if (grad_h_n) sum += load(grad_h_n + column, n);
    return sum;
  }
};

// ---- one tile ----

// Sums of a step of the forward pass: `rows` sequences from j on, and the units of a panel of GatePanels: all gates of
// `across` units from `unit` on or, with one gate, several registers of units.
template <class S>
struct ForwardTile {
  using C = typename Types<S>::Sum;
  const HiddenRows<S>& hidden;  // of the step
  int64_t j, unit, across;
  int rows, registers;
  C* sums;          // [rows][registers * W]: h W_hh^T; the cell may overwrite them
  const C* x_sums;  // x W_ih^T, with x_ld elements from one row to the next
  int64_t x_ld;
  const C* bias;  // null: x_sums include it
};

// Sums of a step of the backward pass: dgates W_hh for `rows` sequences from j on, `registers` of units from `unit` on.
template <class S>
struct BackwardTile {
  using C = typename Types<S>::Sum;
  int64_t s, j, unit, rows;
  int registers;
  const C* sums;  // [rows][registers * W], with sums_ld elements from one row to the next
  int64_t sums_ld;
  bool incoming;                              // whether to add IncomingRow (with a projection it is added before)
  typename Types<S>::Operand *dgates, *full;  // the chunk's row of the tile's first sequence; `full` (h before the
                                              // projection) may be null
};

// The two functions of a cell.
template <class S>
struct CellKernels {
  void (*forward)(const ForwardPass<S>& pass, const ForwardTile<S>& tile);
  void (*backward)(const BackwardPass<S>& pass, const BackwardTile<S>& tile);
};

// Each is compiled in a separate translation unit: lstm.inl, gru.inl, rnn.inl.
template <class S>
CellKernels<S> lstm_kernels();
template <class S>
CellKernels<S> gru_kernels();
template <class S>
CellKernels<S> rnn_tanh_kernels();
template <class S>
CellKernels<S> rnn_relu_kernels();

template <class S>
CellKernels<S> kernels_of(Cell cell) {
  switch (cell) {
    case Cell::rnn_tanh: return rnn_tanh_kernels<S>();
    case Cell::rnn_relu: return rnn_relu_kernels<S>();
    case Cell::lstm: return lstm_kernels<S>();
    case Cell::gru: return gru_kernels<S>();
  }
  return {};
}

// Instantiates a cell's functions for all types of this instruction set.
#if LSTMKERN_BF16
#define LSTMKERN_FOR_EVERY_TYPE(function) template CellKernels<bf16> function<bf16>();
#else
#define LSTMKERN_FOR_EVERY_TYPE(function)          \
  template CellKernels<float> function<float>();   \
  template CellKernels<double> function<double>(); \
  template CellKernels<bf16> function<bf16>();     \
  template CellKernels<f16> function<f16>();
#endif
