// Checks the tensors of one call and translates them into the torch-free structs of layer.h. The code below this file
// checks nothing, and the code above it uses no pointers.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Formatting.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>
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

inline bool rows_are_contiguous(const Tensor& t) { return t.strides().back() == 1 || t.sizes().back() == 1; }
inline Tensor rows_in_place(const Tensor& t) { return rows_are_contiguous(t) ? t : t.contiguous(); }

// The number of directions of a layer with these weights. (Two directions without biases have four.)
inline int count_directions(at::TensorList weights) {
  const size_t n = weights.size();
  TORCH_CHECK(n >= 2 && n <= 10, "expected 2 to 5 weights per direction, got ", n);
  return n > 5 || (n == 4 && weights[2].dim() == 2) ? 2 : 1;
}

// The arguments of one call as a Layer, and the tensors that must stay alive while it runs, in addition to the
// arguments. On the CPU h0 may be undefined: the states then start at zero.
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
    if (h0.defined()) {
      TORCH_CHECK(one_step_ ? h0.dim() == 2 : h0.dim() == 3 && (h0.size(0) == 1 || h0.size(0) == 2), "h0 must be ",
                  one_step_ ? "[N, P]" : "[D, N, P] with D 1 or 2", ", got ", h0.sizes());
      layer.D = one_step_ ? 1 : static_cast<int>(h0.size(0));
      layer.N = h0.size(-2);
      layer.P = h0.size(-1);
    } else {
      layer.D = count_directions(weights);
      layer.N = packed_ ? batch_sizes->select(0, 0).item<int64_t>() : input.size(batch_first_ ? 0 : -2);
      layer.P = weights[1].size(-1);
    }
    layer.I = input.sizes().back();
    take_weights(input, weights);
    if (packed_)
      take_batch_sizes(*batch_sizes, input);
    else
      take_dense(input, lengths);
    if (h0.defined()) {
      if (layer.cell == Cell::lstm) {
        TORCH_CHECK(c0.has_value(), "an LSTM layer needs c0");
        check(*c0, state_sizes(layer.H), input, "c0");
        layer.c0 = contiguous(*c0);
      }
      TORCH_CHECK(h0.scalar_type() == input.scalar_type() && h0.device() == input.device(),
                  "h0 must have the input's dtype and device");
      layer.h0 = contiguous(h0);
    }
    if (!on_device_ && rows_are_contiguous(input))
      input_ = c10::MaybeOwned<Tensor>::borrowed(input);
    else
      input_ = c10::MaybeOwned<Tensor>::owned(on_device_ ? time_major(input) : input.contiguous());
    layer.input = view(*input_);
    if (on_device_) {  // the rows as one matrix; the stride of a dimension of size 1 may have any value
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
    layer.threads = at::in_parallel_region() ? 1 : at::get_num_threads();  // at most; see cpu/calls.h
  }

  // A tensor [T, N, columns], [N, T, columns], [R, columns] or [N, columns] whose rows are contiguous.
  View view(const Tensor& t) const {
    View v;
    v.data = const_cast<void*>(t.const_data_ptr());
    v.lane = t.stride(batch_first_ ? 0 : -2);
    v.step = one_step_ ? v.lane * layer.N : t.stride(batch_first_ ? 1 : 0);
    return v;
  }

  // A result with a row for each row of the input and zeros past each sequence's end. (On a device the kernels write
  // the zeros, because only they know the lengths.) A batch-first result is stored time-major, as in torch.nn, so that
  // dropout applied to it draws the same random numbers.
  Tensor rows_like_input(int64_t columns) const {
    at::DimVector sizes(input_->sizes());
    sizes.back() = columns;
    if (batch_first_) std::swap(sizes[0], sizes[1]);
    Tensor t = fresh(sizes);
    if (batch_first_) t = t.transpose(0, 1);
    if (has_padding_) zero_past_ends(t);
    return t;
  }

  Tensor fresh(at::IntArrayRef sizes) const {
    return on_device_ ? at::empty(sizes, input_->options()) : empty_result(sizes, input_->scalar_type());
  }

  Tensor state(int64_t columns) const { return fresh(state_sizes(columns)); }
  int64_t rows() const { return input_->numel() / layer.I; }
  int64_t gates_columns() const { return saved_of(layer.cell) * padded(layer.H); }

  at::DimVector gates_sizes() const { return {layer.D, rows(), gates_columns()}; }

  void set_gates(const Tensor& gates) {
    check(gates, gates_sizes(), *input_, "gates");
    layer.gates.data = const_cast<void*>(contiguous(gates));
    const int64_t columns = gates_columns();
    layer.gates.step = packed_ ? columns : columns * layer.N;
    layer.gates.lane = columns;
    layer.gates_direction = columns * (packed_ ? input_->size(0) : layer.T * layer.N);
  }

  // A result of forward that the caller passes to backward, or the gradient of one.
  Tensor given_rows(const Tensor& t, int64_t columns, const char* name) const {
    at::DimVector sizes(input_->sizes());
    sizes.back() = columns;
    check(t, sizes, *input_, name);
    return rows_in_place(t);
  }
  Tensor given_state(const Tensor& t, int64_t columns, const char* name) const {
    check(t, state_sizes(columns), *input_, name);
    return t.contiguous();
  }

  bool empty() const { return layer.N == 0 || layer.T == 0 || layer.H == 0; }
  bool one_step() const { return one_step_; }

  Layer layer{};

 private:
  at::DimVector state_sizes(int64_t columns) const {
    return one_step_ ? at::DimVector{layer.N, columns} : at::DimVector{layer.D, layer.N, columns};
  }

  const void* contiguous(const Tensor& t) {
    return t.is_contiguous() ? t.const_data_ptr() : copies_.emplace_back(t.contiguous()).const_data_ptr();
  }

  void check(const Tensor& t, at::IntArrayRef sizes, const Tensor& like, const char* name) const {
    TORCH_CHECK(t.sizes() == sizes, name, " must have the shape ", sizes, ", got ", t.sizes());
    TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the input's dtype ", like.scalar_type(),
                ", got ", t.scalar_type());
    TORCH_CHECK(t.device() == like.device(), name, " must be on the input's device ", like.device(), ", got ",
                t.device());
  }

  // t, contiguous in the order of the results (rows_like_input). It is copied only if it is not, as the input of the
  // first layer of a batch-first stack.
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
    for (int d = 0; d < layer.D; ++d) {
      const Tensor* w = weights.data() + d * per;
      auto take = [&](const Tensor& t, at::IntArrayRef sizes, const char* name) {
        check(t, sizes, input, name);
        return contiguous(t);
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
      TORCH_CHECK(size[t] > 0 && size[t] <= (t ? size[t - 1] : layer.N),
                  "batch_sizes must be positive and must not increase, got ", batch_sizes);
      place_[t] = rows;
      rows += size[t];
    }
    TORCH_CHECK(layer.T == 0 || size[0] == layer.N, "batch_sizes[0] is ", layer.T ? size[0] : 0, ", but h0 has ",
                layer.N, " sequences");
    TORCH_CHECK(rows == input.size(0), "the sum of batch_sizes is ", rows, ", but input has ", input.size(0), " rows");
    order_.resize(layer.N);
    std::iota(order_.begin(), order_.end(), 0);
    set_tables();
  }

  void take_dense(const Tensor& input, const OptionalTensor& lengths) {
    layer.T = one_step_ ? 1 : input.size(batch_first_ ? 1 : 0);
    const int64_t n = input.size(batch_first_ ? 0 : -2);
    TORCH_CHECK(n == layer.N, "h0 has ", layer.N, " sequences, but input has ", n);
    place_.resize(layer.T);
    std::iota(place_.begin(), place_.end(), 0);
    order_.resize(layer.N);
    std::iota(order_.begin(), order_.end(), 0);
    active_.assign(layer.T, layer.N);
    if (lengths.has_value()) {
      TORCH_CHECK(!one_step_, "one step takes no lengths");
      TORCH_CHECK(lengths->scalar_type() == at::kLong, "lengths must be int64, got ", lengths->scalar_type());
      TORCH_CHECK(lengths->dim() == 1 && lengths->size(0) == layer.N, "lengths must have the shape [", layer.N,
                  "], got ", lengths->sizes());
      // Lengths on a device are not checked, because reading them would need a synchronisation.
      if (on_device_ && !lengths->is_cpu()) return set_tables(lengths->to(input.device()));
      Tensor host = lengths->to(at::kCPU).contiguous();
      const int64_t* length = host.const_data_ptr<int64_t>();
      for (int64_t j = 0; j < layer.N; ++j)
        TORCH_CHECK(length[j] >= 0 && length[j] <= layer.T, "lengths must be between 0 and ", layer.T, ", got ",
                    length[j], " for sequence ", j);
      // Copied from pageable memory, which CUDA stages before the call returns without waiting for the device. From a
      // clone, because the caller's tensor may be pinned and overwritten while the copy runs.
      if (on_device_) return set_tables(host.clone().to(input.device(), at::kLong, /*non_blocking=*/true));
      std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return length[a] > length[b]; });
      std::fill(active_.begin(), active_.end(), 0);
      for (int64_t j = 0; j < layer.N; ++j)
        if (length[j] > 0) ++active_[length[j] - 1];
      for (int64_t t = layer.T - 1; t > 0; --t) active_[t - 1] += active_[t];
      has_padding_ = layer.N > 0 && layer.T > 0 && active_[layer.T - 1] < layer.N;
      // Leave out the steps past the end of the longest sequence.
      while (layer.N > 0 && layer.T > 0 && active_[layer.T - 1] == 0) --layer.T;
    }
    set_tables();
  }

  void set_tables(const Tensor& lengths = {}) {
    if (lengths.defined()) {
      lengths_ = lengths.contiguous();
      layer.lengths = lengths_.const_data_ptr<int64_t>();
    }
    layer.active = active_.data();
    layer.place = place_.data();
    layer.order = order_.data();
  }

  bool on_device_, packed_, one_step_, batch_first_, has_padding_ = false;
  c10::SmallVector<int64_t, 8> active_, place_, order_;
  c10::SmallVector<Tensor, 4> copies_;
  c10::MaybeOwned<Tensor> input_;  // the argument, or a copy of it
  Tensor resets_, lengths_;
};

// For an input without features: the input and the weights with one feature of zeros instead. The sums are the same,
// and the kernels need no case for GEMMs with K = 0.
inline std::pair<Tensor, std::vector<Tensor>> with_one_feature(const Tensor& input, const Tensor& h0,
                                                               at::TensorList weights) {
  auto widened = [](const Tensor& t) {
    at::DimVector sizes(t.sizes());
    sizes.back() = 1;
    return t.new_zeros(sizes);
  };
  std::vector<Tensor> all = weights.vec();
  const size_t D = h0.defined() ? (h0.dim() == 3 && h0.size(0) == 2 ? 2 : 1) : count_directions(weights);
  for (size_t at = 0; at < all.size(); at += std::max<size_t>(all.size() / D, 1)) {
    TORCH_CHECK(all[at].dim() == 2 && all[at].size(1) == 0,
                "w_ih must have a column for each of the input's 0 features, got ", all[at].sizes());
    all[at] = widened(all[at]);
  }
  return {widened(input), std::move(all)};
}

}  // namespace lstmkern
