// What follows the time loop of backward in every tier: dx and the weight gradients, each one matrix product over all
// rows, and the bias gradients, which are sums in a fixed order.
#pragma once

#include "steps.h"

namespace lstmkern {
namespace cuda {

// A row of gate gradients has planes of H values. GRU: n r z n_h, so that the three for W_ih (n r z) and the three for
// W_hh (r z n_h) are each contiguous. Other cells: the gates in their order.
template <Cell CELL>
constexpr int kPlanes = CELL == Cell::gru ? 4 : kGates<CELL>;
template <Cell CELL>
constexpr int kHiddenPlane = CELL == Cell::gru ? 1 : 0;  // the first plane that is multiplied with W_hh

// What the time loop writes for one direction, numbered as in Numbering. Null if it is not needed.
template <class S>
struct Trace {
  S* dgates;    // [rows, planes, H]
  S* h_before;  // [rows, P]: h as each step found it, for dW_hh
  S* d_output;  // [rows, P]: derivative of the projected output; null without projection
  S* full;      // [rows, H]: h before projection, for dW_hr; null without projection
};

template <Cell CELL, class S>
Trace<S> allocate_trace(const Backward& layer, int64_t rows, Workspace& memory) {
  const bool project = layer.weights[0].w_hr != nullptr, want = layer.want_weights;
  Trace<S> t;
  t.dgates = memory.allocate<S>(rows * kPlanes<CELL> * layer.H);
  t.h_before = memory.allocate<S>(want ? rows * layer.P : 0);
  t.d_output = memory.allocate<S>(project ? rows * layer.P : 0);
  t.full = memory.allocate<S>(project && want ? rows * layer.H : 0);
  return t;
}

// Memory that the directions use one after the other.
struct Scratch {
  int64_t chunks;  // of rows, in sums
  void *input, *w_ih, *sums;
  void* product;  // fp32 sums of a 16-bit result: kProductBytes, or 8 rows if that is more
};
Scratch allocate_scratch(const Backward& layer, Workspace& memory);

// Computes grad_input (the second direction adds to the first) and grad_weights of direction d. `trace` is the
// direction's Trace<S>.
void gradients(const Backward& layer, int d, const void* trace, const Scratch& scratch, const Call& call);

}  // namespace cuda
}  // namespace lstmkern
