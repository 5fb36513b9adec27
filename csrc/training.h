// The two halves of autograd.LayerFunction (lstmkern/autograd.py) for Python: what forward returns and saves, and what
// backward returns where the CPU kernel alone computes it.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "python.h"

namespace lstmkern {
namespace {

// ((output, h_n, c_n, cells, gates), saved, biases) of a layer that autograd records.
//
// every: cells and gates are results, as of the operator, not only saved. recompute: gates are not saved.
// saved: what ctx.save_for_backward() takes: input, h0, c0, batch_sizes, lengths, resets, output, the c of every step,
// gates, and the weights with None for each bias. No first derivative depends on a bias, so a bias may change before
// backward. biases: (bias, version) of each.
PyObject* recorded_forward(PyObject* const* args) {
  const Tensor& input = tensor_in(args[0]);
  const OptionalTensor h0 = optional_in(args[1]), c0 = optional_in(args[2]), batch_sizes = optional_in(args[4]),
                       lengths = optional_in(args[5]), resets = optional_in(args[6]);
  const c10::string_view mode = text_in(args[7]);
  const bool batch_first = args[8] == Py_True, cells = args[9] == Py_True, every = args[10] == Py_True,
             recompute = args[11] == Py_True;
  c10::SmallVector<Tensor, 8> weights;
  TORCH_CHECK_TYPE(PyTuple_CheckExact(args[3]), "weights must be a tuple");
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[3]); ++i) weights.push_back(tensor_in(PyTuple_GET_ITEM(args[3], i)));
  const ForwardResults r = [&] {
    const Below scope;
    return forward_below(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, !recompute,
                         cells || recompute);
  }();
  const bool shown = every || cells, one_step = input.dim() == 2 && !batch_sizes;
  auto results = py::reinterpret_steal<py::object>(tuple_of(
      wrap(r.output), wrap(r.h_n), wrap(r.c_n), wrap(shown ? r.cells : Tensor()), wrap(every ? r.gates : Tensor())));
  // Backward reads the output of LSTM and GRU only as the state before a later step.
  const bool gated = saved_of(cell_of(mode)) > 0,
             needs_output = !gated || batch_sizes || (!one_step && input.size(batch_first ? 1 : 0) > 1);
  // The caller of a cell may write into the next state, as a decoder does where a sequence has ended.
  const Tensor every_c = one_step && shown && r.cells.defined() ? r.cells.clone() : r.cells;
  auto saved = py::reinterpret_steal<py::object>(PyTuple_New(9 + weights.size())),
       biases = py::reinterpret_steal<py::object>(PyList_New(0));
  if (!results || !saved || !biases) throw python_error();
  Py_ssize_t at = 0;
  auto save = [&](PyObject* item) {
    if (!item) throw python_error();
    PyTuple_SET_ITEM(saved.ptr(), at++, item);
  };
  for (int i : {0, 1, 2, 4, 5, 6}) save(Py_NewRef(args[i]));
  for (const Tensor& t : {needs_output ? r.output : Tensor(), every_c, r.gates}) save(wrap(t));
  for (size_t i = 0; i < weights.size(); ++i) {
    PyObject* weight = PyTuple_GET_ITEM(args[3], i);
    const bool is_bias = weights[i].dim() == 1;
    save(Py_NewRef(is_bias ? Py_None : weight));
    if (!is_bias) continue;
    auto entry = py::reinterpret_steal<py::object>(
        tuple_of(Py_NewRef(weight), PyLong_FromLongLong(static_cast<int64_t>(weights[i]._version()))));
    if (!entry || PyList_Append(biases.ptr(), entry.ptr()) != 0) throw python_error();
  }
  return tuple_of(results.release().ptr(), saved.release().ptr(), biases.release().ptr());
}

// The gradients that LayerFunction.backward returns, for (grads, saved, biases, mode, batch_first, needs_input_grad);
// None if Python must compute them.
PyObject* recorded_backward(PyObject* const* args) {
  PyObject *grads = args[0], *saved = args[1], *biases = args[2], *needs = args[5];
  if (at::GradMode::is_enabled() || at::impl::torch_function_mode_enabled() ||
      torch::autograd::ForwardADLevel::try_get_by_idx(0))
    Py_RETURN_NONE;
  Keys keys;
  bool plain = true;
  auto take = [&](PyObject* given) {
    if (given == Py_None) return OptionalTensor();
    plain &= THPVariable_CheckExact(given);
    if (!plain) return OptionalTensor();
    const Tensor& t = THPVariable_Unpack(given);
    keys.add(t);
    return OptionalTensor(t);
  };
  OptionalTensor grad[4], kept[9];  // of output, h_n, c_n and cells; see recorded_forward
  for (int i = 0; i < 4; ++i) grad[i] = take(PyTuple_GET_ITEM(grads, i));
  for (int i = 0; i < 9; ++i) kept[i] = take(PyTuple_GET_ITEM(saved, i));
  const Py_ssize_t count = PyTuple_GET_SIZE(saved) - 9, first = PyTuple_GET_SIZE(needs) - count;
  c10::SmallVector<Tensor, 8> weights;
  for (Py_ssize_t i = 0, bias = 0; i < count; ++i) {
    PyObject* weight = PyTuple_GET_ITEM(saved, 9 + i);
    if (weight == Py_None) weight = PyTuple_GET_ITEM(PyList_GET_ITEM(biases, bias++), 0);
    const OptionalTensor t = take(weight);
    weights.push_back(t ? *t : Tensor());
  }
  if (!plain || !keys.only_cpu() || !kept[0]) Py_RETURN_NONE;
  auto needed = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(needs, i) == Py_True; };
  bool any_weight = false;
  for (Py_ssize_t i = 0; i < count; ++i) any_weight |= needed(first + i);
  BackwardResults r;
  r.weights.resize(count);
  if (grad[0] || grad[1] || grad[2] || grad[3]) {
    const Below scope;
    r = cpu_backward(grad[0], grad[1], grad[2], grad[3], *kept[0], kept[1] ? *kept[1] : Tensor(), kept[2], weights,
                     kept[3], kept[4], kept[5], kept[6], kept[7], kept[8], text_in(args[3]), args[4] == Py_True,
                     {needed(0), needed(1) || needed(2), any_weight});
  }
  auto gradients = py::reinterpret_steal<py::object>(PyTuple_New(first + count));
  if (!gradients) throw python_error();
  for (Py_ssize_t i = 0; i < first + count; ++i) {
    const Tensor none;
    const Tensor& of = i >= first ? r.weights[i - first] : i == 0 ? r.input : i == 1 ? r.h0 : i == 2 ? r.c0 : none;
    PyObject* item = wrap(needed(i) ? of : none);
    if (!item) throw python_error();
    PyTuple_SET_ITEM(gradients.ptr(), i, item);
  }
  return gradients.release().ptr();
}

}  // namespace

inline void add_training(py::module_& m) {
  static PyMethodDef methods[] = {
      method<12, recorded_forward>(
          "recorded_forward",
          "recorded_forward(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, cells, every, "
          "recompute): (results, what to save, [(bias, version)]) of LayerFunction.forward"),
      method<6, recorded_backward>("recorded_backward",
                                   "recorded_backward(grads, saved, biases, mode, batch_first, needs_input_grad): the "
                                   "gradients of LayerFunction.backward, or None if Python must compute them"),
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace lstmkern
