// The arguments of simt_layer (driver.cpp). simulator.py has the same structure.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct Arguments {
  int64_t cell, dtype, T, N, I, H, P, D, batch_first, packed, rows, seed;
  int64_t grad_output_columns;  // columns of its rows in memory; at least D*P
  int64_t spread;               // additional elements between the steps of output, cells, gates and their gradients
  int64_t tier;                 // 0 stepwise, 1 cluster, 2 grid, 3 as the dispatch table says
  // The device. 0 is an H100's value; as a number it is one that no earlier call had, so that nothing is remembered
  // about it.
  int64_t multiprocessors, shared_per_block, largest_cluster, device_number, code_version;
  const int64_t* batch_sizes;  // packed
  const int64_t* lengths;
  const void *resets, *input, *h0, *c0;
  const void* weights[2][5];  // w_ih w_hh b_ih b_hh w_hr
  void *output, *h_n, *c_n, *cells, *gates;
  const void *grad_output, *grad_h_n, *grad_c_n, *grad_cells;
  void *grad_input, *grad_h0, *grad_c0;
  void* grad_weights[2][5];
};

// Returns 0 and the name of the tier that ran, or 1 and an error message.
int simt_layer(const Arguments* a, int backward, char* message, size_t length);
int simt_selftest(const char* name, uint64_t seed, char* message, size_t length);

}  // extern "C"
