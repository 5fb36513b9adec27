// How a unit of one cell begins, and the two functions that a cell is made of, given what the cell does with one
// sequence. Included by lstm.inl, gru.inl and rnn.inl inside the namespace of an instruction set.
#include "simd.h"
// clang-format off: each builds on those before it
#include "steps.h"
#include "cell_kernels.h"
// clang-format on

// Loads a register of sums: all of it, or the first lanes, where the next gate follows them. `across`: elements from
// one gate (RNN: register) to the next.
template <class C>
struct LoadAll {
  static constexpr int64_t across = width<C>;
  INLINE Vec<C> operator()(const C* p) const { return load(p); }
};
template <class C>
struct LoadFirst {
  int64_t across;
  INLINE Vec<C> operator()(const C* p) const { return load_end(p, across); }
};

// The sums of one row's gates (RNN: registers), one after the other.
template <class C, class Load>
struct RowSums {
  const C *h, *x, *bias;  // h W_hh^T; x W_ih^T; the bias, or null if x includes it
  Load load;
  INLINE Vec<C> of_h(int part) const { return load(h + part * load.across); }
  INLINE Vec<C> of_x(int part) const {
    const Vec<C> sum = load(x + part * load.across);
    return bias ? sum + load(bias + part * load.across) : sum;
  }
};

// The forward pass of a cell for one tile. Two passes over its rows: the tile's cells fill the pipeline together, and
// each pass is a shorter chain of dependent operations than the whole cell.
//
// CellRows<S> is built from the pass and the tile and has
//   kGates                            the cell's gates
//   begin(row, sums, kept)            the first half: stores in `kept` what the second half needs, for a gated cell in
//                                     two registers, for the RNN in as many as it has sums
//   end(j, kept, unit, n, hidden)     the second half for one register of n units: returns h
template <template <class> class CellRows, class S>
void finish_forward(const ForwardPass<S>& pass, const ForwardTile<S>& given) {
  using C = typename Types<S>::Sum;
  constexpr int W = width<C>, G = CellRows<S>::kGates;
  const ForwardTile<S> tile = given;
  const int row_length = tile.registers * W, units = G > 1 ? 1 : tile.registers;
  // What the first half keeps: in place of the sums, unless these are closer together.
  const bool narrow = G > 1 && tile.across < W;
  alignas(64) C buffer[G > 1 ? kMaxRows * 2 * W : 1];
  C* const kept = narrow ? buffer : tile.sums;
  const int kept_length = narrow ? 2 * W : row_length;
  const bool project = pass.project;
  const int64_t H = pass.L.H, full_ld = pass.full_ld;
  auto* const full = pass.full;
  CellRows<S> rows(pass, tile);
  auto begin = [&](auto load) __attribute__((always_inline)) {
    for (int r = 0; r < tile.rows; ++r)
      rows.begin(r,
                 RowSums<C, decltype(load)>{tile.sums + r * row_length, tile.x_sums + r * tile.x_ld, tile.bias, load},
                 kept + r * kept_length);
  };
  if (narrow)
    begin(LoadFirst<C>{tile.across});
  else
    begin(LoadAll<C>{});
  const HiddenRows<S> hidden = tile.hidden;
  for (int r = 0; r < tile.rows; ++r) {
    const int64_t j = tile.j + r;
    const HiddenRow<S> to = hidden(j);
    for (int v = 0; v < units; ++v) {
      const int64_t unit = tile.unit + v * W, n = H - unit;
      const Vec<C> h = rows.end(j, kept + r * kept_length + v * W, unit, n, to);
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
