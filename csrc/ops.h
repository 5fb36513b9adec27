// The operators on tensors, written once for all back ends. They allocate the results and tell the kernels where to
// write them. problem.h checks the arguments and translates them into the torch-free structs of layer.h.
#pragma once

#include <array>
#include <tuple>
#include <vector>

#include "problem.h"

namespace lstmkern {

// A BackEnd has:
//   on_device            whether it runs on a device other than the CPU, where `lengths` stay (see Layer::lengths)
//   capturing()          whether a CUDA graph is being captured
//   forward, backward()  the kernels; their second argument is a tensor on the device
//   Guard                lives as long as a call

// Refuses lengths on the CPU during a capture: each replay would copy them from memory that was freed after the
// capture.
template <class BackEnd>
void refuse_captured_copy(const OptionalTensor& lengths) {
  TORCH_CHECK(!BackEnd::on_device || !lengths || !lengths->is_cpu() || !BackEnd::capturing(),
              "lengths on the CPU cannot be captured in a CUDA graph: pass lengths on the input's device");
}

// Results. A tensor that a call does not have is undefined.
struct ForwardResults {
  Tensor output, h_n, c_n, cells, gates;
};
struct BackwardResults {
  Tensor input, h0, c0;
  std::vector<Tensor> weights;
};

template <class BackEnd>
ForwardResults compute_forward(const Tensor& input, const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
                               const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                               const OptionalTensor& resets, c10::string_view mode, bool batch_first, bool save,
                               bool cells) {
  const typename BackEnd::Guard guard(input);
  refuse_captured_copy<BackEnd>(lengths);
  if (input.dim() > 1 && input.size(-1) == 0) {
    const auto [x, widened] = with_one_feature(input, h0, weights);
    return compute_forward<BackEnd>(x, h0, c0, widened, batch_sizes, lengths, resets, mode, batch_first, save, cells);
  }
  Problem problem(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, BackEnd::on_device);
  Forward f{problem.layer};
  const bool lstm = f.cell == Cell::lstm;
  TORCH_CHECK(!problem.one_step() || !lstm || save || cells,
              "one step of an LSTM returns its cell state: pass cells=True");
  ForwardResults results;
  auto& [output, h_n, c_n, all_cells, gates] = results;
  output = problem.rows_like_input(f.D * f.P);
  if (!problem.one_step()) {
    h_n = problem.state(f.P);
    if (lstm) c_n = problem.state(f.H);
  }
  if (lstm && (save || cells)) all_cells = problem.rows_like_input(f.D * f.H);
  if (save && saved_of(f.cell)) gates = problem.fresh(problem.gates_sizes());
  if (problem.empty()) {
    if (h_n.defined()) h0.defined() ? h_n.copy_(h0) : h_n.zero_();
    if (c_n.defined()) h0.defined() ? c_n.copy_(*c0) : c_n.zero_();
    return results;
  }
  if (gates.defined()) problem.set_gates(gates);
  static_cast<Layer&>(f) = problem.layer;
  f.output = problem.view(output);
  if (all_cells.defined()) f.cells = problem.view(all_cells);
  Tensor last_h = h_n, last_c = c_n;
  if (problem.one_step()) {  // output and cells are the next state, but a kernel on a device also computes in h_n, c_n
    last_h = BackEnd::on_device ? problem.state(f.P) : output;
    if (lstm) last_c = BackEnd::on_device ? problem.state(f.H) : all_cells;
  }
  f.h_n = last_h.data_ptr();
  f.c_n = lstm ? last_c.data_ptr() : nullptr;
  BackEnd::forward(f, output);
  return results;
}

template <class BackEnd>
BackwardResults compute_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const OptionalTensor& grad_cells, const Tensor& input,
                                 const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
                                 const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                                 const OptionalTensor& resets, const OptionalTensor& output,
                                 const OptionalTensor& cells, const OptionalTensor& gates, c10::string_view mode,
                                 bool batch_first, std::array<bool, 3> needs) {
  const typename BackEnd::Guard guard(input);
  refuse_captured_copy<BackEnd>(lengths);
  if (input.dim() > 1 && input.size(-1) == 0) {
    const auto [x, widened] = with_one_feature(input, h0, weights);
    auto grads = compute_backward<BackEnd>(grad_output, grad_h_n, grad_c_n, grad_cells, x, h0, c0, widened, batch_sizes,
                                           lengths, resets, output, cells, gates, mode, batch_first, needs);
    if (needs[0]) grads.input = at::empty_like(input);
    for (size_t i = 0; needs[2] && i < weights.size(); ++i)
      if (weights[i].numel() == 0) grads.weights[i] = at::empty_like(weights[i]);
    return grads;
  }
  Problem problem(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, BackEnd::on_device);
  auto kept_by_forward = [](const OptionalTensor& t) { return t && t->numel(); };
  if (kept_by_forward(gates)) problem.set_gates(*gates);
  Backward b{problem.layer};
  const bool lstm = b.cell == Cell::lstm, gated = saved_of(b.cell) > 0;
  // The output is read as the state before a step; for an RNN its derivative is computed from it too.
  TORCH_CHECK(problem.empty() || ((output || (b.T == 1 && gated)) && (kept_by_forward(cells) || !lstm) &&
                                  (kept_by_forward(gates) || !gated)),
              "backward needs the results of forward with save=True: output, cells (LSTM), gates (LSTM and GRU)");
  auto [need_input, need_state, need_weights] = needs;
  BackwardResults results;
  auto& [grad_input, grad_h0, grad_c0, grad_weights] = results;
  if (need_input) grad_input = problem.rows_like_input(b.I);
  if (need_state) grad_h0 = problem.state(b.P);
  if (need_state && lstm) grad_c0 = problem.state(b.H);
  grad_weights.resize(weights.size());
  for (size_t i = 0; need_weights && i < weights.size(); ++i) grad_weights[i] = problem.fresh(weights[i].sizes());
  if (problem.empty()) {
    if (need_input) grad_input.zero_();
    for (Tensor& g : grad_weights)
      if (need_weights) g.zero_();
    if (need_state) {
      grad_h_n ? grad_h0.copy_(*grad_h_n) : grad_h0.zero_();
      if (lstm) grad_c_n ? grad_c0.copy_(*grad_c_n) : grad_c0.zero_();
    }
    return results;
  }
  c10::SmallVector<Tensor, 6> kept;
  auto keep = [&](Tensor t) -> const Tensor& { return kept.emplace_back(std::move(t)); };
  if (output) b.output = problem.view(keep(problem.given_rows(*output, b.D * b.P, "output")));
  if (lstm) b.cells = problem.view(keep(problem.given_rows(*cells, b.D * b.H, "cells")));
  if (grad_output) b.grad_output = problem.view(keep(problem.given_rows(*grad_output, b.D * b.P, "grad_output")));
  if (grad_cells && lstm) b.grad_cells = problem.view(keep(problem.given_rows(*grad_cells, b.D * b.H, "grad_cells")));
  if (grad_h_n) b.grad_h_n = keep(problem.given_state(*grad_h_n, b.P, "grad_h_n")).const_data_ptr();
  if (grad_c_n && lstm) b.grad_c_n = keep(problem.given_state(*grad_c_n, b.H, "grad_c_n")).const_data_ptr();
  if (need_input) b.grad_input = problem.view(grad_input);
  b.grad_h0 = need_state ? grad_h0.data_ptr() : nullptr;
  b.grad_c0 = need_state && lstm ? grad_c0.data_ptr() : nullptr;
  b.want_weights = need_weights;
  const size_t per = weights.size() / b.D;
  for (int d = 0; need_weights && d < b.D; ++d) {
    Tensor* w = grad_weights.data() + d * per;
    b.grad_weights[d] = {w[0].data_ptr(), w[1].data_ptr(), per >= 4 ? w[2].data_ptr() : nullptr,
                         per >= 4 ? w[3].data_ptr() : nullptr, per == 3 || per == 5 ? w[per - 1].data_ptr() : nullptr};
  }
  BackEnd::backward(b, input);
  return results;
}

// The operators: an absent result is an empty tensor.

template <class BackEnd>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(const Tensor& input, const Tensor& h0,
                                                                 const OptionalTensor& c0, at::TensorList weights,
                                                                 const OptionalTensor& batch_sizes,
                                                                 const OptionalTensor& lengths,
                                                                 const OptionalTensor& resets, c10::string_view mode,
                                                                 bool batch_first, bool save, bool cells) {
  ForwardResults r =
      compute_forward<BackEnd>(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells);
  for (Tensor* t : {&r.h_n, &r.c_n, &r.cells, &r.gates})
    if (!t->defined()) *t = at::empty({0}, input.options());
  return {r.output, r.h_n, r.c_n, r.cells, r.gates};
}

template <class BackEnd>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_cells, const Tensor& input, const Tensor& h0, const OptionalTensor& c0,
    at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& resets, const OptionalTensor& output, const OptionalTensor& cells,
    const OptionalTensor& gates, c10::string_view mode, bool batch_first, std::array<bool, 3> needs) {
  BackwardResults r =
      compute_backward<BackEnd>(grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes,
                                lengths, resets, output, cells, gates, mode, batch_first, needs);
  auto fill = [&](Tensor& t) {
    if (!t.defined()) t = at::empty({0}, input.options());
  };
  for (Tensor* t : {&r.input, &r.h0, &r.c0}) fill(*t);
  for (Tensor& t : r.weights) fill(t);
  return {r.input, r.h0, r.c0, std::move(r.weights)};
}

}  // namespace lstmkern
