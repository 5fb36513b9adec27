// All kernels of one instruction set: included by baseline.cpp, avx2.cpp, avx512.cpp, ... inside their own namespaces.
// clang-format off: each builds on those before it
#include "simd.h"
#include "../cells.h"
#include "gemm.h"
#include "pack.h"
#include "common.inl"
#include "direct.h"
#include "gates.h"
#include "forward.inl"
#include "gradients.inl"
#include "backward.inl"
// clang-format on

template <class S>
void forward_typed(const Forward& layer) {
  switch (layer.cell) {
    case Cell::rnn_tanh: return forward_cell<Cell::rnn_tanh, S>(layer);
    case Cell::rnn_relu: return forward_cell<Cell::rnn_relu, S>(layer);
    case Cell::lstm: return forward_cell<Cell::lstm, S>(layer);
    case Cell::gru: return forward_cell<Cell::gru, S>(layer);
  }
}

template <class S>
void backward_typed(const Backward& layer) {
  switch (layer.cell) {
    case Cell::rnn_tanh: return backward_cell<Cell::rnn_tanh, S>(layer);
    case Cell::rnn_relu: return backward_cell<Cell::rnn_relu, S>(layer);
    case Cell::lstm: return backward_cell<Cell::lstm, S>(layer);
    case Cell::gru: return backward_cell<Cell::gru, S>(layer);
  }
}

#if LSTMKERN_BF16  // a variant for bf16 alone: everything else is as fast in its plain sibling
void forward(const Forward& layer) { forward_typed<bf16>(layer); }
void backward(const Backward& layer) { backward_typed<bf16>(layer); }
#else
void forward(const Forward& layer) {
  switch (layer.dtype) {
    case DType::f32: return forward_typed<float>(layer);
    case DType::f64: return forward_typed<double>(layer);
    case DType::bf16: return forward_typed<bf16>(layer);
    case DType::f16: return forward_typed<f16>(layer);
  }
}

void backward(const Backward& layer) {
  switch (layer.dtype) {
    case DType::f32: return backward_typed<float>(layer);
    case DType::f64: return backward_typed<double>(layer);
    case DType::bf16: return backward_typed<bf16>(layer);
    case DType::f16: return backward_typed<f16>(layer);
  }
}
#endif
