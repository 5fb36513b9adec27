// How a unit of one cell begins, and the two functions that a cell is made of, given what the cell does with one
// sequence. Included by lstm.inl, gru.inl and rnn.inl inside the namespace of an instruction set.
#include "simd.h"
// clang-format off: each builds on those before it
#include "steps.h"
#include "cell_kernels.h"
// clang-format on

// x W_ih^T with the bias, one register.
template <class C>
struct InputSums {
  const C *x, *bias;
  int64_t x_across, bias_across;
  INLINE Vec<C> operator()(int v) const {
    const Vec<C> sum = load(x + v * x_across);
    return bias_across < 0 ? sum : sum + load(bias + v * bias_across);
  }
};

// The forward pass of a cell for one tile. Two passes over its rows: the tile's cells fill the pipeline together, and
// each pass is a shorter chain of dependent operations than the whole cell.
//
// CellRows<S> is built from the pass and the tile and has
//   kGates                            the cell's gates
//   begin(row, sums, x)               the first half: leaves in `sums` what the second half needs
//   end(j, sums, unit, n, hidden)     the second half for one register of n units: returns h
template <template <class> class CellRows, class S>
void finish_forward(const ForwardPass<S>& pass, const ForwardTile<S>& given) {
  using C = typename Types<S>::Sum;
  constexpr int W = width<C>, G = CellRows<S>::kGates;
  const ForwardTile<S> tile = given;
  const int row_length = tile.registers * W, units = G > 1 ? 1 : tile.registers;
  const bool project = pass.project;
  const int64_t H = pass.L.H, full_ld = pass.full_ld;
  auto* const full = pass.full;
  CellRows<S> rows(pass, tile);
  InputSums<C> x{tile.x_sums, pass.bias + tile.unit, tile.x_across, tile.bias_across};
  for (int r = 0; r < tile.rows; ++r, x.x += tile.x_ld) rows.begin(r, tile.sums + r * row_length, x);
  const HiddenRows<S> hidden = tile.hidden;
  for (int r = 0; r < tile.rows; ++r) {
    const int64_t j = tile.j + r;
    const HiddenRow<S> to = hidden(j);
    for (int v = 0; v < units; ++v) {
      const int64_t unit = tile.unit + v * W, n = H - unit;
      const Vec<C> h = rows.end(j, tile.sums + r * row_length + v * W, unit, n, to);
      if (project)
        store(full + j * full_ld + unit, h, n);
      else
        to.store_h(h, unit, n);
    }
  }
}

// The backward pass of a cell for one tile. CellRow<S> is built from the pass, the step and the sequence and has
//   step(dh, unit, n, dgates, full)   the derivative for one register of n units
template <template <class> class CellRow, class S>
void finish_backward(const BackwardPass<S>& pass, const BackwardTile<S>& given) {
  using C = typename Types<S>::Sum;
  constexpr int W = width<C>;
  const BackwardTile<S> tile = given;
  const int64_t H = pass.L.H, dgates_ld = pass.dgates_ld, full_ld = pass.Hp;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t j = tile.j + r;
    const C* const sums = tile.sums + r * tile.sums_ld;
    CellRow<S> row(pass, tile.s, j);
    const IncomingRow<S> incoming(pass, tile.s, j);
    for (int v = 0; v < tile.registers; ++v) {
      const int64_t unit = tile.unit + v * W, n = H - unit;
      Vec<C> dh = load(sums + v * W);
      if (tile.incoming) dh = incoming.add_to(dh, unit, n);
      row.step(dh, unit, n, tile.dgates + r * dgates_ld + unit, tile.full ? tile.full + r * full_ld + unit : nullptr);
    }
  }
}
