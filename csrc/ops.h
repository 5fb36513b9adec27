// The operators on tensors, once for every back end: argument checks, allocation, and the translation of tensors into
// the torch-free contract of layer.h. Nothing below this file checks anything; nothing above it sees a pointer.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

#include "layer.h"
#include "results.h"

namespace lstmkern {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Cell cell_of(c10::string_view mode) {
  if (mode == "LSTM") return Cell::lstm;
  if (mode == "GRU") return Cell::gru;
  if (mode == "RNN_TANH") return Cell::rnn_tanh;
  if (mode == "RNN_RELU") return Cell::rnn_relu;
  TORCH_CHECK_VALUE(false, "Unrecognized RNN mode: ", mode);
}

inline DType dtype_of_tensor(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return DType::f32;
    case at::kDouble: return DType::f64;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    default:
      TORCH_CHECK(false, "lstmkern: expected a floating point input (fp32, fp64, bf16, fp16), got ", t.scalar_type());
  }
}

inline Tensor rows_in_place(const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) == 1 ? t : t.contiguous(); }

// One call's arguments in the terms of layer.h, and everything that must stay alive while it runs.
class Problem {
 public:
  Problem(const Tensor& input, const Tensor& h0, const OptionalTensor& c0, at::TensorList weights,
          const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& resets,
          c10::string_view mode, bool batch_first, bool on_device)
      : on_device_(on_device),
        packed_(batch_sizes.has_value()),
        one_step_(!packed_ && input.dim() == 2),
        batch_first_(batch_first && input.dim() == 3) {
    layer.cell = cell_of(mode);
    layer.dtype = dtype_of_tensor(input);
    TORCH_CHECK(input.dim() == 2 || (input.dim() == 3 && !packed_), "input must be [", packed_ ? "R" : "T, N", ", I]",
                packed_ ? "" : ", or [N, I] for one step", ", got ", input.sizes());
    TORCH_CHECK(one_step_ ? h0.dim() == 2 : h0.dim() == 3 && (h0.size(0) == 1 || h0.size(0) == 2), "h0 must be ",
                one_step_ ? "[N, P]" : "[D, N, P] with D 1 or 2", ", got ", h0.sizes());
    layer.D = one_step_ ? 1 : static_cast<int>(h0.size(0));
    layer.N = h0.size(-2);
    layer.P = h0.size(-1);
    layer.I = input.size(-1);
    take_weights(input, weights);
    if (packed_)
      take_batch_sizes(*batch_sizes, input);
    else
      take_dense(input, lengths);
    if (layer.cell == Cell::lstm) {
      TORCH_CHECK(c0.has_value(), "an LSTM layer needs c0");
      check(*c0, state_sizes(layer.H), input, "c0");
      c0_ = c0->contiguous();
      layer.c0 = c0_.const_data_ptr();
    }
    TORCH_CHECK(h0.scalar_type() == input.scalar_type() && h0.device() == input.device(),
                "h0 must have the input's dtype and device");
    h0_ = h0.contiguous();
    layer.h0 = h0_.const_data_ptr();
    input_ = on_device_ ? time_major(input) : rows_in_place(input);
    layer.input = view(input_);
    if (on_device_) {  // the rows as one matrix; a stride of a dimension of size 1 may be anything
      layer.input.lane = layer.I;
      layer.input.step = (packed_ ? 1 : layer.N) * layer.input.lane;
    }
    if (resets.has_value()) {
      TORCH_CHECK(resets->scalar_type() == at::kBool, "resets must be a bool tensor, got ", resets->scalar_type());
      TORCH_CHECK(resets->dim() == input.dim() - 1 && resets->sizes() == input.sizes().slice(0, input.dim() - 1),
                  "resets must have the shape of the input without its features, ",
                  input.sizes().slice(0, input.dim() - 1), ", got ", resets->sizes());
      TORCH_CHECK(resets->device() == input.device(), "resets must be on the input's device ", input.device(), ", got ",
                  resets->device());
      resets_ = resets->unsqueeze(-1);
      layer.resets = view(resets_);
    }
    layer.threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  }

  // A tensor [T, N, columns], [N, T, columns], [R, columns] or [N, columns] whose rows are contiguous.
  View view(const Tensor& t) const {
    View v;
    v.data = const_cast<void*>(t.const_data_ptr());
    v.lane = t.stride(batch_first_ ? 0 : -2);
    v.step = one_step_ ? v.lane * layer.N : t.stride(batch_first_ ? 1 : 0);
    return v;
  }

  // A result with a row for each of the input's, zeros past each sequence's end (on a device the kernels write these:
  // only they know the lengths). A batch-first one lies time-major in
  // memory, as torch.nn's does: whatever is random about it afterwards (dropout) draws the same numbers.
  Tensor rows_like_input(int64_t columns) const {
    auto sizes = input_.sizes().vec();
    sizes.back() = columns;
    if (batch_first_) std::swap(sizes[0], sizes[1]);
    Tensor t = fresh(sizes);
    if (batch_first_) t = t.transpose(0, 1);
    if (ragged_) zero_past_ends(t);
    return t;
  }

  Tensor fresh(at::IntArrayRef sizes) const {
    return on_device_ ? at::empty(sizes, input_.options()) : empty_result(sizes, input_.scalar_type());
  }

  Tensor state(int64_t columns) const { return fresh(state_sizes(columns)); }
  Tensor none() const { return fresh({0}); }
  int64_t rows() const { return input_.numel() / layer.I; }
  int64_t gates_columns() const { return saved_of(layer.cell) * padded(layer.H); }

  void set_gates(const Tensor& gates) {
    layer.gates.data = const_cast<void*>(gates.const_data_ptr());
    const int64_t columns = gates_columns();
    layer.gates.step = packed_ ? columns : columns * layer.N;
    layer.gates.lane = columns;
    layer.gates_direction = columns * (packed_ ? input_.size(0) : layer.T * layer.N);
  }

  bool empty() const { return layer.N == 0 || layer.T == 0 || layer.H == 0; }
  bool one_step() const { return one_step_; }

  Layer layer{};

 private:
  at::DimVector state_sizes(int64_t columns) const {
    return one_step_ ? at::DimVector{layer.N, columns} : at::DimVector{layer.D, layer.N, columns};
  }

  void check(const Tensor& t, at::IntArrayRef sizes, const Tensor& like, const char* name) const {
    TORCH_CHECK(t.sizes() == sizes, name, " must have the shape ", sizes, ", got ", t.sizes());
    TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the input's dtype ", like.scalar_type(),
                ", got ", t.scalar_type());
    TORCH_CHECK(t.device() == like.device(), name, " must be on the input's device ", like.device(), ", got ",
                t.device());
  }

  // Contiguous in the order of the results (rows_like_input); a copy only where the input is not, as that of a
  // batch-first stack's first layer.
  Tensor time_major(const Tensor& t) const {
    return batch_first_ ? t.transpose(0, 1).contiguous().transpose(0, 1) : t.contiguous();
  }

  void zero_past_ends(const Tensor& t) const {
    const View v = view(t);
    const size_t bytes = t.size(-1) * t.element_size();
    for (int64_t step = 0, steps = t.size(batch_first_ ? 1 : 0); step < steps; ++step)
      for (int64_t j = step < layer.T ? active_[step] : 0; j < layer.N; ++j)
        std::memset(static_cast<char*>(v.data) + (v.step * step + v.lane * order_[j]) * t.element_size(), 0, bytes);
  }

  void take_weights(const Tensor& input, at::TensorList weights) {
    const int64_t per = static_cast<int64_t>(weights.size()) / layer.D;
    TORCH_CHECK(per * layer.D == static_cast<int64_t>(weights.size()) && per >= 2 && per <= 5,
                "expected 2 to 5 weights per direction, got ", weights.size(), " for ", layer.D, " directions");
    const bool bias = per >= 4, project = per == 3 || per == 5;
    const int64_t G = gates_of(layer.cell);
    TORCH_CHECK(weights[0].dim() == 2 && weights[0].size(0) % G == 0, "w_ih must be [", G, " * H, I], got ",
                weights[0].sizes());
    layer.H = weights[0].size(0) / G;
    TORCH_CHECK(!project || layer.cell == Cell::lstm, "proj_size argument is only supported for LSTM, not RNN or GRU");
    TORCH_CHECK(!project || (layer.H > 0 && layer.P > 0), "H and P of a layer with w_hr must be at least 1, got ",
                layer.H, " and ", layer.P);
    TORCH_CHECK(project || layer.P == layer.H, "h0 must be [D, N, ", layer.H, "], got a last size of ", layer.P);
    weights_.reserve(weights.size());
    for (int d = 0; d < layer.D; ++d) {
      const Tensor* w = weights.data() + d * per;
      auto take = [&](const Tensor& t, at::IntArrayRef sizes, const char* name) {
        check(t, sizes, input, name);
        weights_.push_back(t.contiguous());
        return weights_.back().const_data_ptr();
      };
      Weights& to = layer.weights[d];
      to.w_ih = take(w[0], {G * layer.H, layer.I}, "w_ih");
      to.w_hh = take(w[1], {G * layer.H, layer.P}, "w_hh");
      to.b_ih = bias ? take(w[2], {G * layer.H}, "b_ih") : nullptr;
      to.b_hh = bias ? take(w[3], {G * layer.H}, "b_hh") : nullptr;
      to.w_hr = project ? take(w[per - 1], {layer.P, layer.H}, "w_hr") : nullptr;
    }
  }

  void take_batch_sizes(const Tensor& batch_sizes, const Tensor& input) {
    TORCH_CHECK(batch_sizes.dim() == 1 && batch_sizes.scalar_type() == at::kLong && batch_sizes.device().is_cpu(),
                "batch_sizes must be a 1D int64 tensor on the CPU");
    Tensor sizes = batch_sizes.contiguous();
    const int64_t* size = sizes.const_data_ptr<int64_t>();
    layer.T = sizes.numel();
    active_.assign(size, size + layer.T);
    place_.resize(layer.T);
    int64_t rows = 0;
    for (int64_t t = 0; t < layer.T; ++t) {
      TORCH_CHECK(size[t] > 0 && size[t] <= (t ? size[t - 1] : layer.N), "batch_sizes must not grow, got ",
                  batch_sizes);
      place_[t] = rows;
      rows += size[t];
    }
    TORCH_CHECK(layer.T == 0 || size[0] == layer.N, "batch_sizes begin with ", layer.T ? size[0] : 0,
                " sequences but h0 has ", layer.N);
    TORCH_CHECK(rows == input.size(0), "batch_sizes add up to ", rows, " rows but input has ", input.size(0));
    order_.resize(layer.N);
    std::iota(order_.begin(), order_.end(), 0);
    point();
  }

  void take_dense(const Tensor& input, const OptionalTensor& lengths) {
    layer.T = one_step_ ? 1 : input.size(batch_first_ ? 1 : 0);
    const int64_t n = input.size(batch_first_ ? 0 : -2);
    TORCH_CHECK(n == layer.N, "h0 has ", layer.N, " sequences but input has ", n);
    place_.resize(layer.T);
    std::iota(place_.begin(), place_.end(), 0);
    order_.resize(layer.N);
    std::iota(order_.begin(), order_.end(), 0);
    active_.assign(layer.T, layer.N);
    if (lengths.has_value()) {
      TORCH_CHECK(lengths->scalar_type() == at::kLong, "lengths must be int64, got ", lengths->scalar_type());
      TORCH_CHECK(lengths->dim() == 1 && lengths->size(0) == layer.N, "lengths must have the shape [", layer.N,
                  "], got ", lengths->sizes());
      // Lengths on a device stay unseen: looking would be a synchronisation.
      if (on_device_ && !lengths->is_cpu()) return point(lengths->to(input.device()));
      Tensor host = lengths->to(at::kCPU).contiguous();
      const int64_t* length = host.const_data_ptr<int64_t>();
      for (int64_t j = 0; j < layer.N; ++j)
        TORCH_CHECK(length[j] > 0 && length[j] <= layer.T, "lengths must be between 1 and ", layer.T, ", got ",
                    length[j], " for sequence ", j);
      // From pageable memory: staged before the call returns, and no reason to wait for the device.
      if (on_device_) return point(host.to(input.device(), at::kLong, /*non_blocking=*/true));
      std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
      std::fill(active_.begin(), active_.end(), 0);
      for (int64_t j = 0; j < layer.N; ++j) ++active_[length[j] - 1];
      for (int64_t t = layer.T - 1; t > 0; --t) active_[t - 1] += active_[t];
      ragged_ = layer.N > 0 && layer.T > 0 && active_[layer.T - 1] < layer.N;
      // Steps past the longest sequence hold nothing.
      while (layer.T > 1 && active_[layer.T - 1] == 0) --layer.T;
    }
    point();
  }

  void point(const Tensor& lengths = {}) {
    if (lengths.defined()) {
      lengths_ = lengths.contiguous();
      layer.lengths = lengths_.const_data_ptr<int64_t>();
    }
    layer.active = active_.data();
    layer.place = place_.data();
    layer.order = order_.data();
  }

  bool on_device_, packed_, one_step_, batch_first_, ragged_ = false;
  std::vector<int64_t> active_, place_, order_;
  std::vector<Tensor> weights_;
  Tensor input_, h0_, c0_, resets_, lengths_;
};

// An input without features and the weights for it, as one feature of zeros instead: the same sums, and no kernel has
// to know of products without terms.
inline std::pair<Tensor, std::vector<Tensor>> with_one_feature(const Tensor& input, const Tensor& h0,
                                                               at::TensorList weights) {
  auto widened = [](const Tensor& t) {
    at::DimVector sizes(t.sizes());
    sizes.back() = 1;
    return t.new_zeros(sizes);
  };
  std::vector<Tensor> all = weights.vec();
  const size_t D = h0.dim() == 3 && h0.size(0) == 2 ? 2 : 1;
  for (size_t at = 0; at < all.size(); at += std::max<size_t>(all.size() / D, 1)) {
    TORCH_CHECK(all[at].dim() == 2 && all[at].size(1) == 0,
                "w_ih must have a column for each of the input's 0 features, got ", all[at].sizes());
    all[at] = widened(all[at]);
  }
  return {widened(input), std::move(all)};
}

// A BackEnd says whether it runs on a device of its own (where `lengths` stay, see Layer::lengths), and brings
// forward() and backward(), which are told the device by one of its tensors, and a Guard, which lives as long as a
// call.
template <class BackEnd>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(const Tensor& input, const Tensor& h0,
                                                                 const OptionalTensor& c0, at::TensorList weights,
                                                                 const OptionalTensor& batch_sizes,
                                                                 const OptionalTensor& lengths,
                                                                 const OptionalTensor& resets, c10::string_view mode,
                                                                 bool batch_first, bool save, bool cells) {
  const typename BackEnd::Guard guard(input);
  if (input.dim() > 1 && input.size(-1) == 0) {
    const auto [x, widened] = with_one_feature(input, h0, weights);
    return layer_forward<BackEnd>(x, h0, c0, widened, batch_sizes, lengths, resets, mode, batch_first, save, cells);
  }
  Problem problem(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, BackEnd::on_device);
  Forward f{problem.layer};
  const bool lstm = f.cell == Cell::lstm;
  TORCH_CHECK(!problem.one_step() || !lstm || save || cells, "one step of an LSTM returns its cell state: pass cells");
  Tensor output = problem.rows_like_input(f.D * f.P);
  Tensor h_n = problem.one_step() ? problem.none() : problem.state(f.P);
  Tensor c_n = problem.one_step() || !lstm ? problem.none() : problem.state(f.H);
  Tensor all_cells = lstm && (save || cells) ? problem.rows_like_input(f.D * f.H) : problem.none();
  Tensor gates = problem.none();
  if (save && saved_of(f.cell)) gates = problem.fresh({f.D, problem.rows(), problem.gates_columns()});
  if (problem.empty()) {
    if (!problem.one_step()) h_n.copy_(h0);
    if (!problem.one_step() && lstm) c_n.copy_(*c0);
    return {output, h_n, c_n, all_cells, gates};
  }
  if (gates.numel()) problem.set_gates(gates);
  static_cast<Layer&>(f) = problem.layer;
  f.output = problem.view(output);
  if (all_cells.numel()) f.cells = problem.view(all_cells);
  Tensor last_h = h_n, last_c = c_n;
  if (problem.one_step()) {  // the same numbers in the same place, except where a back end works in h_n and c_n
    last_h = BackEnd::on_device ? problem.state(f.P) : output;
    if (lstm) last_c = BackEnd::on_device ? problem.state(f.H) : all_cells;
  }
  f.h_n = last_h.data_ptr();
  f.c_n = lstm ? last_c.data_ptr() : nullptr;
  BackEnd::forward(f, output);
  return {output, h_n, c_n, all_cells, gates};
}

template <class BackEnd>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_cells, const Tensor& input, const Tensor& h0, const OptionalTensor& c0,
    at::TensorList weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& resets, const OptionalTensor& output, const OptionalTensor& cells,
    const OptionalTensor& gates, c10::string_view mode, bool batch_first, std::array<bool, 3> needs) {
  const typename BackEnd::Guard guard(input);
  if (input.dim() > 1 && input.size(-1) == 0) {
    const auto [x, widened] = with_one_feature(input, h0, weights);
    auto grads = layer_backward<BackEnd>(grad_output, grad_h_n, grad_c_n, grad_cells, x, h0, c0, widened, batch_sizes,
                                         lengths, resets, output, cells, gates, mode, batch_first, needs);
    if (needs[0]) std::get<0>(grads) = at::empty_like(input);
    for (size_t i = 0; needs[2] && i < weights.size(); ++i)
      if (weights[i].numel() == 0) std::get<3>(grads)[i] = at::empty_like(weights[i]);
    return grads;
  }
  Problem problem(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, BackEnd::on_device);
  auto kept_by_forward = [](const OptionalTensor& t) { return t && t->numel(); };
  if (kept_by_forward(gates)) problem.set_gates(*gates);
  Backward b{problem.layer};
  const bool lstm = b.cell == Cell::lstm, gated = saved_of(b.cell) > 0;
  // The output is read as the state before a step, and a plain RNN's also as what its derivative is computed from.
  TORCH_CHECK(problem.empty() || ((output || (problem.one_step() && gated)) && (kept_by_forward(cells) || !lstm) &&
                                  (kept_by_forward(gates) || !gated)),
              "backward needs what forward keeps with save: output, cells (LSTM), gates (LSTM and GRU)");
  auto [need_input, need_state, need_weights] = needs;
  Tensor grad_input = need_input ? problem.rows_like_input(b.I) : problem.none();
  Tensor grad_h0 = need_state ? problem.state(b.P) : problem.none();
  Tensor grad_c0 = need_state && lstm ? problem.state(b.H) : problem.none();
  std::vector<Tensor> grad_weights;
  for (const Tensor& w : weights) grad_weights.push_back(need_weights ? problem.fresh(w.sizes()) : problem.none());
  if (problem.empty()) {
    grad_input.zero_();
    for (Tensor& g : grad_weights) g.zero_();
    if (need_state) {
      grad_h_n ? grad_h0.copy_(*grad_h_n) : grad_h0.zero_();
      if (lstm) grad_c_n ? grad_c0.copy_(*grad_c_n) : grad_c0.zero_();
    }
    return {grad_input, grad_h0, grad_c0, grad_weights};
  }
  std::vector<Tensor> kept;
  auto keep = [&](Tensor t) -> const Tensor& { return kept.emplace_back(std::move(t)); };
  kept.reserve(6);
  if (output) b.output = problem.view(keep(rows_in_place(*output)));
  if (lstm) b.cells = problem.view(keep(rows_in_place(*cells)));
  if (grad_output) b.grad_output = problem.view(keep(rows_in_place(*grad_output)));
  if (grad_cells && lstm) b.grad_cells = problem.view(keep(rows_in_place(*grad_cells)));
  if (grad_h_n) b.grad_h_n = keep(grad_h_n->contiguous()).const_data_ptr();
  if (grad_c_n && lstm) b.grad_c_n = keep(grad_c_n->contiguous()).const_data_ptr();
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
  return {grad_input, grad_h0, grad_c0, grad_weights};
}

}  // namespace lstmkern
