// How a unit of one cell begins, and the two functions that a cell is made of, given what the cell does with one
// sequence. Included by lstm.inl, gru.inl and rnn.inl inside the namespace of an instruction set.
#include "simd.h"
// clang-format off: each builds on those before it
#include "elementary.h"
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

// Whose values the lanes of a register are: those of one sequence or, in a narrow panel, of several, `units` each. Then
// the cell is computed for all of them at once. It is worth moving the lanes where registers have many and loads have
// masks.
template <class C>
struct OneSequence {
  static constexpr int most() { return 1; }
  // `to`: registers whose lanes of sequence k are the first ones of those that take(k, registers) loads.
  template <int Count, class F>
  INLINE void gather(int, Vec<C> (&to)[Count], F&& take) const {
    take(0, to);
  }
  // put(k, registers that begin with the lanes of sequence k).
  template <int Count, class F>
  INLINE void scatter(int, const Vec<C> (&from)[Count], F&& put) const {
    put(0, from);
  }
};
template <class C>
struct SeveralSequences {
  static constexpr int W = width<C>;
  int64_t units;
  static bool suits(int64_t units, int64_t sequences) {
    return LSTMKERN_VECTOR_BYTES == 64 && 4 * units <= W && sequences > 1;
  }
  int most() const { return static_cast<int>(W / units); }
  template <int Count, class F>
  INLINE void gather(int count, Vec<C> (&to)[Count], F&& take) const {
    alignas(64) C lanes[Count][2 * W];
    for (int k = 0; k < count; ++k) {
      Vec<C> row[Count];
      take(k, row);
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) store(lanes[i] + k * units, row[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) to[i] = load(lanes[i]);
  }
  template <int Count, class F>
  INLINE void scatter(int count, const Vec<C> (&from)[Count], F&& put) const {
    alignas(64) C lanes[Count][2 * W];
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) store(lanes[i], from[i]), store(lanes[i] + W, Vec<C>{});
    for (int k = 0; k < count; ++k) {
      Vec<C> row[Count];
#pragma GCC unroll 16
      for (int i = 0; i < Count; ++i) row[i] = load(lanes[i] + k * units);
      put(k, row);
    }
  }
};

// The forward pass of a cell for one tile. Two passes over its rows: the tile's cells fill the pipeline together, and
// each pass is a shorter chain of dependent operations than the whole cell.
//
// CellRows<S> is built from the pass and the tile and has
//   kGates                              the cell's gates
//   begin(lanes, r, count, sums, kept)  the first half for `count` rows from r on, sums(k) being those of row r + k:
//                                       stores in `kept` what the second half needs, for a gated cell in two registers,
//                                       for the RNN in as many as it has sums
//   end(lanes, j, count, kept, unit, results)  the second half for one register: h, and what store_rest() wants
//   store_rest(j, result, unit, n, to)  stores of sequence j's n units what is to be stored besides h
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
  auto finish = [&](auto lanes, auto load_sums) INLINED {
    const int most = lanes.most();
    auto count_from = [&](int r) INLINED { return tile.rows - r < most ? tile.rows - r : most; };
    for (int r = 0; r < tile.rows; r += most)
      rows.begin(
          lanes, r, count_from(r),
          [&](int k) INLINED {
            return RowSums<C, decltype(load_sums)>{tile.sums + (r + k) * row_length, tile.x_sums + (r + k) * tile.x_ld,
                                                   tile.bias, load_sums};
          },
          kept + r * kept_length);
    const HiddenRows<S> hidden = tile.hidden;
    for (int r = 0; r < tile.rows; r += most)
      for (int v = 0; v < units; ++v) {
        const int64_t j = tile.j + r, unit = tile.unit + v * W, n = H - unit;
        Vec<C> results[2];
        rows.end(lanes, j, count_from(r), kept + r * kept_length + v * W, unit, results);
        lanes.scatter(count_from(r), results, [&](int k, const Vec<C>(&of_row)[2]) INLINED {
          const HiddenRow<S> to = hidden(j + k);
          rows.store_rest(j + k, of_row[1], unit, n, to);
          if (project)
            store(full + (j + k) * full_ld + unit, of_row[0], n);
          else
            to.store_h(of_row[0], unit, n);
        });
      }
  };
  if (narrow && SeveralSequences<C>::suits(tile.across, tile.rows))
    finish(SeveralSequences<C>{tile.across}, LoadFirst<C>{tile.across});
  else if (narrow)
    finish(OneSequence<C>(), LoadFirst<C>{tile.across});
  else
    finish(OneSequence<C>(), LoadAll<C>{});
}

// The backward pass of a cell for one tile. CellRow<S> is built from the pass, the step and the sequence and has
//   kInputs, kOutputs
//   inputs(unit, n, in)     loads what the derivative for one register of n units needs besides dh
//   derivative(dh, in, out) (static)
//   outputs(pass, j, unit, n, out, dgates, full)  (static) stores the results for sequence j
template <template <class> class CellRow, class S>
void finish_backward(const BackwardPass<S>& pass, const BackwardTile<S>& given) {
  using C = typename Types<S>::Sum;
  constexpr int W = width<C>, kInputs = CellRow<S>::kInputs, kOutputs = CellRow<S>::kOutputs;
  const BackwardTile<S> tile = given;
  const int64_t H = pass.L.H, dgates_ld = pass.dgates_ld, full_ld = pass.Hp;
  auto load_row = [&](const CellRow<S>& row, const IncomingRow<S>& incoming, int64_t r, int v, Vec<C>(&in)[kInputs + 1])
                      INLINED {
                        const int64_t unit = tile.unit + v * W, n = H - unit;
                        Vec<C> dh = load(tile.sums + r * tile.sums_ld + v * W);
                        in[kInputs] = tile.incoming ? incoming.add_to(dh, unit, n) : dh;
                        row.inputs(unit, n, in);
                      };
  auto store_row = [&](int64_t r, int v, const Vec<C>* out) INLINED {
    const int64_t unit = tile.unit + v * W;
    CellRow<S>::outputs(pass, tile.j + r, unit, H - unit, out, tile.dgates + r * dgates_ld + unit,
                        tile.full ? tile.full + r * full_ld + unit : nullptr);
  };
  Vec<C> in[kInputs + 1], out[kOutputs];
  if (SeveralSequences<C>::suits(H - tile.unit, tile.rows)) {
    const SeveralSequences<C> lanes{H - tile.unit};
    for (int64_t r = 0; r < tile.rows; r += lanes.most()) {
      const int count = static_cast<int>(tile.rows - r < lanes.most() ? tile.rows - r : lanes.most());
      lanes.gather(count, in, [&](int k, Vec<C>(&of_row)[kInputs + 1]) INLINED {
        load_row(CellRow<S>(pass, tile.s, tile.j + r + k), IncomingRow<S>(pass, tile.s, tile.j + r + k), r + k, 0,
                 of_row);
      });
      CellRow<S>::derivative(in[kInputs], in, out);
      lanes.scatter(count, out, [&](int k, const Vec<C>(&of_row)[kOutputs]) INLINED { store_row(r + k, 0, of_row); });
    }
    return;
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const CellRow<S> row(pass, tile.s, tile.j + r);
    const IncomingRow<S> incoming(pass, tile.s, tile.j + r);
    for (int v = 0; v < tile.registers; ++v) {
      load_row(row, incoming, r, v, in);
      CellRow<S>::derivative(in[kInputs], in, out);
      store_row(r, v, out);
    }
  }
}
