// One layer below autograd for callers in C++: the kernels themselves where the dispatcher would only pass the call on
// to them, and the operator where it would do more.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "ops.h"

namespace lstmkern {

// The kernels on the CPU (ops.cpp). h0 may be undefined: the states then start at zero.
ForwardResults cpu_forward(const Tensor& input, const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
                           const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                           const OptionalTensor& resets, c10::string_view mode, bool batch_first, bool save,
                           bool cells);
BackwardResults cpu_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                             const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells, const Tensor& input,
                             const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
                             const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                             const OptionalTensor& resets, const OptionalTensor& output, const OptionalTensor& cells,
                             const OptionalTensor& gates, c10::string_view mode, bool batch_first,
                             std::array<bool, 3> needs);

// What the dispatcher looks at to find the kernel of a call.
class Keys {
 public:
  void add(const Tensor& t) { all_ = all_ | t.key_set(); }
  void add(const OptionalTensor& t) {
    if (t) add(*t);
  }
  void add(at::TensorList tensors) {
    for (const Tensor& t : tensors) add(t);
  }

  // Whether it would find the CPU kernel, below autograd and autocast: no tensor and no mode (functorch, tracing,
  // __torch_dispatch__, functionalization, ...) has another key, and no profiler watches.
  bool only_cpu() const {
    constexpr c10::DispatchKeySet passed = c10::autograd_dispatch_keyset_with_ADInplaceOrView |
                                           c10::autocast_dispatch_keyset |
                                           c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
    const auto local = c10::impl::tls_local_dispatch_key_set();
    return ((all_ | local.included_) - local.excluded_ - passed) == c10::DispatchKeySet(c10::DispatchKey::CPU) &&
           !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
  }

 private:
  c10::DispatchKeySet all_;
};

template <class Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// The initial states of a layer as the operators take them: the given ones, or zeros.
struct States {
  Tensor h0;
  OptionalTensor c0;
  States(const OptionalTensor& h, const OptionalTensor& c, const Tensor& input, at::TensorList weights,
         const OptionalTensor& batch_sizes, c10::string_view mode, bool batch_first)
      : c0(c) {
    if (h) {
      h0 = *h;
      return;
    }
    const int64_t D = count_directions(weights);
    const bool projects = weights.size() / D % 2 == 1, one_step = !batch_sizes && input.dim() == 2;
    const int64_t N = batch_sizes ? batch_sizes->select(0, 0).item<int64_t>() : input.size(batch_first ? 0 : -2);
    auto zeros = [&](int64_t columns) {
      return at::zeros(one_step ? at::DimVector{N, columns} : at::DimVector{D, N, columns}, input.options());
    };
    h0 = zeros(weights[1].size(-1));
    if (mode == "LSTM") c0 = projects ? zeros(weights.back().size(-1)) : h0;
  }
};

inline ForwardResults forward_below(const Tensor& input, const OptionalTensor& h0, const OptionalTensor& c0,
                                    at::TensorList weights, const OptionalTensor& batch_sizes,
                                    const OptionalTensor& lengths, const OptionalTensor& resets, c10::string_view mode,
                                    bool batch_first, bool save, bool cells) {
  Keys keys;
  keys.add(input);
  keys.add(weights);
  for (const OptionalTensor* t : {&h0, &c0, &batch_sizes, &lengths, &resets}) keys.add(*t);
  if (keys.only_cpu())
    return cpu_forward(input, h0 ? *h0 : Tensor(), c0, weights, batch_sizes, lengths, resets, mode, batch_first, save,
                       cells);
  using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
  static const auto op =
      operator_named<Results(const Tensor&, const Tensor&, const OptionalTensor&, at::TensorList, const OptionalTensor&,
                             const OptionalTensor&, const OptionalTensor&, c10::string_view, bool, bool, bool)>(
          "lstmkern::layer_forward");
  const States start(h0, c0, input, weights, batch_sizes, mode, batch_first);
  auto [output, h_n, c_n, every_c, gates] =
      op.call(input, start.h0, start.c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells);
  auto present = [](Tensor& t) { return t.dim() == 1 && t.numel() == 0 ? Tensor() : std::move(t); };
  return {output, present(h_n), present(c_n), present(every_c), present(gates)};
}

inline BackwardResults backward_below(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                      const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells,
                                      const Tensor& input, const OptionalTensor& h0, const OptionalTensor& c0,
                                      at::TensorList weights, const OptionalTensor& batch_sizes,
                                      const OptionalTensor& lengths, const OptionalTensor& resets,
                                      const OptionalTensor& output, const OptionalTensor& cells,
                                      const OptionalTensor& gates, c10::string_view mode, bool batch_first,
                                      std::array<bool, 3> needs) {
  Keys keys;
  keys.add(input);
  keys.add(weights);
  for (const OptionalTensor* t : {&grad_output, &grad_h_n, &grad_c_n, &grad_cells, &h0, &c0, &batch_sizes, &lengths,
                                  &resets, &output, &cells, &gates})
    keys.add(*t);
  if (keys.only_cpu())
    return cpu_backward(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0 ? *h0 : Tensor(), c0, weights,
                        batch_sizes, lengths, resets, output, cells, gates, mode, batch_first, needs);
  using Results = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;
  static const auto op =
      operator_named<Results(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                             const Tensor&, const Tensor&, const OptionalTensor&, at::TensorList, const OptionalTensor&,
                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                             const OptionalTensor&, c10::string_view, bool, std::array<bool, 3>)>(
          "lstmkern::layer_backward");
  const States start(h0, c0, input, weights, batch_sizes, mode, batch_first);
  auto [grad_input, grad_h0, grad_c0, grad_weights] =
      op.call(grad_output, grad_h_n, grad_c_n, grad_cells, input, start.h0, start.c0, weights, batch_sizes, lengths,
              resets, output, cells, gates, mode, batch_first, needs);
  auto needed = [](bool need, Tensor& t) { return need ? std::move(t) : Tensor(); };
  for (Tensor& t : grad_weights) t = needed(needs[2], t);
  return {needed(needs[0], grad_input), needed(needs[1], grad_h0), needed(needs[1] && start.c0, grad_c0),
          std::move(grad_weights)};
}

}  // namespace lstmkern
