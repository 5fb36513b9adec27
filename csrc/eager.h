// One layer below autograd for Python, without torch.ops. torch.ops matches the arguments with a schema, boxes them and
// looks for __torch_function__, which takes longer than a small layer.
#pragma once

#include "python.h"

namespace lstmkern {
namespace {

// An absent tensor is None in Python.
py::object or_none(const Tensor& t) { return t.defined() ? py::cast(t) : py::none(); }

py::tuple eager_forward(const Tensor& input, const OptionalTensor& h0, const OptionalTensor& c0,
                        const std::vector<Tensor>& weights, const OptionalTensor& batch_sizes,
                        const OptionalTensor& lengths, const OptionalTensor& resets, std::string_view mode,
                        bool batch_first, bool save, bool cells) {
  const ForwardResults r = [&] {
    const Below scope;
    return forward_below(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells);
  }();
  return py::make_tuple(r.output, or_none(r.h_n), or_none(r.c_n), or_none(r.cells), or_none(r.gates));
}

py::tuple eager_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                         const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells, const Tensor& input,
                         const OptionalTensor& h0, const OptionalTensor& c0, const std::vector<Tensor>& weights,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& resets,
                         const OptionalTensor& output, const OptionalTensor& cells, const OptionalTensor& gates,
                         std::string_view mode, bool batch_first, std::array<bool, 3> needs) {
  const BackwardResults r = [&] {
    const Below scope;
    return backward_below(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes, lengths,
                          resets, output, cells, gates, mode, batch_first, needs);
  }();
  py::list of_weights(r.weights.size());
  for (size_t i = 0; i < r.weights.size(); ++i) of_weights[i] = or_none(r.weights[i]);
  return py::make_tuple(or_none(r.input), or_none(r.h0), c0 ? or_none(r.c0) : py::none(), of_weights);
}

}  // namespace

inline void add_eager(py::module_& m) {
  const char* about = "The operator below autograd; absent results are None, and without h0 the states start at zero";
  m.def("layer_forward", &eager_forward, about);
  m.def("layer_backward", &eager_backward, about);
}

}  // namespace lstmkern
