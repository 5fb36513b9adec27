// The operators' schemas, and their registration for the CPU. For CUDA see cuda/ops.cpp.
#include "below.h"

#include <torch/library.h>

namespace lstmkern {
namespace {

struct CpuBackEnd {
  static constexpr bool on_device = false;
  static bool capturing() { return false; }
  struct Guard {
    explicit Guard(const Tensor&) {}
  };
  static void forward(const Forward& layer, const Tensor&) { cpu::forward(layer); }
  static void backward(const Backward& layer, const Tensor&) { cpu::backward(layer); }
};

}  // namespace

ForwardResults cpu_forward(const Tensor& input, const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           const OptionalTensor& resets, c10::string_view mode, bool batch_first, bool save,
                           bool cells) {
  return compute_forward<CpuBackEnd>(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, save,
                                     cells);
}
BackwardResults cpu_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells, const Tensor& input,
                             const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
                             const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                             const OptionalTensor& resets, const OptionalTensor& output, const OptionalTensor& cells,
                             const OptionalTensor& gates, c10::string_view mode, bool batch_first,
                             std::array<bool, 3> needs) {
  return compute_backward<CpuBackEnd>(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes,
                                      lengths, resets, output, cells, gates, mode, batch_first, needs);
}

// An input [N, I] without batch_sizes, with h0 [N, P] and c0 [N, H], is one step. output and cells are then the next
// state, and h_n and c_n are empty, because they would hold the same numbers. Backward needs the saved results of
// forward that the cell has. For one step of LSTM and GRU output may be absent: backward reads it only as the state
// before a later step.
TORCH_LIBRARY(lstmkern, m) {
  m.def(
      "layer_forward(Tensor input, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths,"
      " Tensor? resets, str mode, bool batch_first, bool save, bool cells)"
      " -> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)");
  m.def(
      "layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, Tensor input,"
      " Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor? resets, Tensor? output,"
      " Tensor? cells, Tensor? gates, str mode, bool batch_first, bool[3] needs)"
      " -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");
}

TORCH_LIBRARY_IMPL(lstmkern, CPU, m) {
  m.impl("layer_forward", layer_forward<CpuBackEnd>);
  m.impl("layer_backward", layer_backward<CpuBackEnd>);
}

}  // namespace lstmkern
