// The operators for eager calls below autograd, without torch.ops. torch.ops matches the arguments with a schema, boxes
// them and looks for __torch_function__, which takes longer than a small layer. This is a header, so that only
// module.cpp compiles pybind11's headers.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace py = pybind11;

namespace lstmkern {
namespace {

using at::Tensor;
using Optional = const std::optional<Tensor>&;
using Weights = std::vector<Tensor>;
using Flag3 = std::array<bool, 3>;

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct Below {
  py::gil_scoped_release no_gil;
  at::AutoDispatchBelowADInplaceOrView below;  // results are never views of other tensors
};

// The initial states of a layer: the given ones, or zeros.
struct States {
  Tensor h0;
  std::optional<Tensor> c0;
  States(Optional h, Optional c, const Tensor& input, const Weights& weights, Optional batch_sizes,
         std::string_view mode, bool batch_first)
      : c0(c) {
    if (h) {
      h0 = *h;
      return;
    }
    const size_t n = weights.size();
    TORCH_CHECK(n >= 2 && n <= 10, "expected 2 to 5 weights per direction, got ", n);
    // Two directions without biases have four weights.
    const int64_t D = n > 5 || (n == 4 && weights[2].dim() == 2) ? 2 : 1;
    const bool projects = n / D % 2 == 1, one_step = !batch_sizes && input.dim() == 2;
    const int64_t N = batch_sizes ? batch_sizes->select(0, 0).item<int64_t>() : input.size(batch_first ? 0 : -2);
    auto zeros = [&](int64_t columns) {
      return at::zeros(one_step ? at::DimVector{N, columns} : at::DimVector{D, N, columns}, input.options());
    };
    h0 = zeros(weights[1].size(-1));
    if (mode == "LSTM") c0 = projects ? zeros(weights[n - 1].size(-1)) : h0;
  }
};

// A result that this call does not have is an empty tensor in C++ and None in Python, where a tensor would need a
// wrapper.
py::object present(const Tensor& t) { return t.dim() == 1 && t.numel() == 0 ? py::none() : py::cast(t); }

py::tuple layer_forward(const Tensor& input, Optional h0, Optional c0, const Weights& weights, Optional batch_sizes,
                        Optional lengths, Optional resets, std::string_view mode, bool batch_first, bool save,
                        bool cells) {
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  static const auto op =
      operator_named<Results(const Tensor&, const Tensor&, Optional, at::TensorList, Optional, Optional, Optional,
                             c10::string_view, bool, bool, bool)>("lstmkern::layer_forward");
  auto [output, h_n, c_n, every_c, gates] = [&] {
    const Below scope;
    const States start(h0, c0, input, weights, batch_sizes, mode, batch_first);
    return op.call(input, start.h0, start.c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells);
  }();
  return py::make_tuple(output, present(h_n), present(c_n), present(every_c), present(gates));
}

py::tuple layer_backward(Optional grad_output, Optional grad_h_n, Optional grad_c_n, Optional grad_cells,
                         const Tensor& input, Optional h0, Optional c0, const Weights& weights, Optional batch_sizes,
                         Optional lengths, Optional resets, Optional output, Optional cells, Optional gates,
                         std::string_view mode, bool batch_first, Flag3 needs) {
  using Results = std::tuple<Tensor, Tensor, Tensor, Weights>;
  static const auto op = operator_named<Results(
      Optional, Optional, Optional, Optional, const Tensor&, const Tensor&, Optional, at::TensorList, Optional,
      Optional, Optional, Optional, Optional, Optional, c10::string_view, bool, Flag3)>("lstmkern::layer_backward");
  auto [grad_input, grad_h0, grad_c0, grad_weights] = [&] {
    const Below scope;
    const States start(h0, c0, input, weights, batch_sizes, mode, batch_first);
    return op.call(grad_output, grad_h_n, grad_c_n, grad_cells, input, start.h0, start.c0, weights, batch_sizes,
                   lengths, resets, output, cells, gates, mode, batch_first, needs);
  }();
  py::list of_weights(grad_weights.size());
  for (size_t i = 0; i < grad_weights.size(); ++i) of_weights[i] = needs[2] ? py::cast(grad_weights[i]) : py::none();
  return py::make_tuple(needs[0] ? py::cast(grad_input) : py::none(), needs[1] ? py::cast(grad_h0) : py::none(),
                        needs[1] && c0 ? py::cast(grad_c0) : py::none(), of_weights);
}

}  // namespace

inline void add_eager(py::module_& m) {
  const char* about = "The operator below autograd; absent results are None, and without h0 the states start at zero";
  m.def("layer_forward", &layer_forward, about);
  m.def("layer_backward", &layer_backward, about);
}

}  // namespace lstmkern
