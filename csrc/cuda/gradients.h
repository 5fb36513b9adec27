// What follows backward's time loop, whichever tier ran it: dx and the weights' gradients, each one product over all
// rows, and the biases' by sums in a fixed order.
#pragma once

#include "steps.h"

namespace lstmkern {
namespace cuda {

// A row of gates' derivatives lies in planes of H. GRU: n r z n_h, so that the input's three (n r z) and the recurrent
// three (r z n_h) are each contiguous. Everyone else: the gates in their order.
template <Cell CELL>
constexpr int kPlanes = CELL == Cell::gru ? 4 : kGates<CELL>;
template <Cell CELL>
constexpr int kHiddenPlane = CELL == Cell::gru ? 1 : 0;  // the first of those that W_hh takes

// What the time loop writes for one direction, in the numbering of Numbering; null where nobody wants it.
template <class S>
struct Trace {
  S* dgates;    // [rows, planes, H]
  S* h_before;  // [rows, P]: h as each step found it, for dW_hh
  S* d_output;  // [rows, P]: derivative of the projected output; null without projection
  S* full;      // [rows, H]: h before projection, for dW_hr; null without projection
};

template <Cell CELL, class S>
Trace<S> take_trace(const Backward& layer, int64_t rows, Carver& memory) {
  const bool project = layer.weights[0].w_hr != nullptr, want = layer.want_weights;
  Trace<S> t;
  t.dgates = memory.take<S>(rows * kPlanes<CELL> * layer.H);
  t.h_before = memory.take<S>(want ? rows * layer.P : 0);
  t.d_output = memory.take<S>(project ? rows * layer.P : 0);
  t.full = memory.take<S>(project && want ? rows * layer.H : 0);
  return t;
}

// Memory that the directions use one after the other.
struct Scratch {
  int64_t chunks;  // of rows, in sums
  void *input, *w_ih, *sums;
  void* product;  // fp32, kProductBytes or 8 rows: of a result that is 16 bits wide
};
Scratch take_scratch(const Backward& layer, Carver& memory);

// grad_input (the second direction adds to the first) and grad_weights of direction d. `trace` is its Trace<S>.
void gradients(const Backward& layer, int d, const void* trace, const Scratch& scratch, const Call& call);

}  // namespace cuda
}  // namespace lstmkern
