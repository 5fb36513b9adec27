// The two halves of autograd.LayerFunction (lstmkern/autograd.py) for Python: what forward returns and saves, and what
// backward returns where the CPU kernel alone computes it.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <array>

#include "python.h"

namespace lstmkern {
namespace {

// The settings of LayerFunction: (mode, batch_first, cells, every, batch_sizes, lengths, resets). A tuple, because
// autograd takes longer for an argument that is no tensor than for one that is.
struct Settings {
  c10::string_view mode;
  bool batch_first, cells, every;
  OptionalTensor batch_sizes, lengths, resets;
  PyObject* const tuple;

  explicit Settings(PyObject* given) : tuple(given) {
    TORCH_CHECK_TYPE(PyTuple_CheckExact(given) && PyTuple_GET_SIZE(given) == 7, "settings must be a tuple of 7");
    mode = text_in(item(0));
    batch_first = item(1) == Py_True, cells = item(2) == Py_True, every = item(3) == Py_True;
    batch_sizes = optional_in(item(4)), lengths = optional_in(item(5)), resets = optional_in(item(6));
  }
  PyObject* item(int i) const { return PyTuple_GET_ITEM(tuple, i); }
  bool is_lstm() const { return mode == "LSTM"; }
  bool is_one_step(const Tensor& input) const { return input.dim() == 2 && !batch_sizes; }
};

// LayerFunction's results, or their gradients, by name: of output, h_n, c_n and cells; None for those that a call does
// not have. (Where every result is returned the tuple has five.)
std::array<PyObject*, 4> in_order(PyObject* tuple, bool lstm, bool one_step) {
  std::array<PyObject*, 4> named{Py_None, Py_None, Py_None, Py_None};
  const Py_ssize_t n = PyTuple_GET_SIZE(tuple);
  const bool all = n == 5;
  Py_ssize_t at = 0;
  for (int i = 0; i < 4; ++i) {
    const bool there = all || i == 0 || (i == 1 && !one_step) || (i == 2 && lstm && !one_step) || i == 3;
    if (there && at < n) named[i] = PyTuple_GET_ITEM(tuple, at++);
  }
  return named;
}

// The same for Python.
PyObject* results_in_order(PyObject* const* args) {
  TORCH_CHECK_TYPE(PyTuple_CheckExact(args[0]), "results must be a tuple");
  const auto named = in_order(args[0], text_in(args[1]) == "LSTM", args[2] == Py_True);
  return tuple_of(Py_NewRef(named[0]), Py_NewRef(named[1]), Py_NewRef(named[2]), Py_NewRef(named[3]));
}

// (results, saved, biases) of a layer that autograd records.
//
// results: output, h_n, c_n and cells, as many as the call has; with `every` also None for each that it does not have,
// and gates. recompute: gates are not saved.
// saved: what ctx.save_for_backward() takes: input, h0, c0, batch_sizes, lengths, resets, output, the c of every step,
// gates, and the weights with None for each bias. No first derivative depends on a bias, so a bias may change before
// backward. biases: (bias, version) of each.
PyObject* recorded_forward(PyObject* const* args) {
  const Settings s(args[0]);
  const Tensor& input = tensor_in(args[1]);
  const OptionalTensor h0 = optional_in(args[2]), c0 = optional_in(args[3]);
  TORCH_CHECK_TYPE(PyTuple_CheckExact(args[4]), "weights must be a tuple");
  Borrowed weights;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[4]); ++i) {
    tensor_in(PyTuple_GET_ITEM(args[4], i));
    weights.add(PyTuple_GET_ITEM(args[4], i));
  }
  const bool recompute = args[5] == Py_True;
  const ForwardResults r = [&] {
    const Below scope(is_short(input, weights));
    return forward_below(input, h0, c0, weights, s.batch_sizes, s.lengths, s.resets, s.mode, s.batch_first, !recompute,
                         s.cells || recompute);
  }();
  const bool shown = s.every || s.cells, one_step = s.is_one_step(input);
  auto results = py::reinterpret_steal<py::object>(PyList_New(0));
  auto add = [](py::object& list, PyObject* item) {
    const auto owned = py::reinterpret_steal<py::object>(item);
    if (!list || !item || PyList_Append(list.ptr(), item) != 0) throw python_error();
  };
  for (const Tensor* t : {&r.output, &r.h_n, &r.c_n})
    if (s.every || t->defined()) add(results, wrap(*t));
  if (s.every || (s.cells && r.cells.defined())) add(results, wrap(r.cells));
  if (s.every) add(results, wrap(r.gates));
  // Backward reads the output of LSTM and GRU only as the state before a later step.
  const bool gated = saved_of(cell_of(s.mode)) > 0,
             single = one_step || (!s.batch_sizes && !is_symbolic(input) && input.size(s.batch_first ? 1 : 0) == 1),
             needs_output = !gated || !single;
  // The caller of a cell may write into the next state, as a decoder does where a sequence has ended.
  const Tensor every_c = one_step && shown && r.cells.defined() ? r.cells.clone() : r.cells;
  auto saved = py::reinterpret_steal<py::object>(PyTuple_New(9 + weights.size())),
       biases = py::reinterpret_steal<py::object>(PyList_New(0));
  if (!saved) throw python_error();
  Py_ssize_t at = 0;
  auto save = [&](PyObject* item) {
    if (!item) throw python_error();
    PyTuple_SET_ITEM(saved.ptr(), at++, item);
  };
  for (PyObject* given : {args[1], args[2], args[3], s.item(4), s.item(5), s.item(6)}) save(Py_NewRef(given));
  save(needs_output ? wrap(r.output) : Py_NewRef(Py_None)), save(wrap(every_c)), save(wrap(r.gates));
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool is_bias = weights[i].dim() == 1;
    save(Py_NewRef(is_bias ? Py_None : weights.object(i)));
    if (is_bias)
      add(biases,
          tuple_of(Py_NewRef(weights.object(i)), PyLong_FromLongLong(static_cast<int64_t>(weights[i]._version()))));
  }
  return tuple_of(PyList_AsTuple(results.ptr()), saved.release().ptr(), biases.release().ptr());
}

// The gradients that LayerFunction.backward returns; None if Python must compute them.
PyObject* recorded_backward(PyObject* const* args) {
  PyObject *saved = args[1], *biases = args[2], *needs = args[4];
  const Settings s(args[3]);
  if (at::GradMode::is_enabled() || at::impl::torch_function_mode_enabled() ||
      torch::autograd::ForwardADLevel::try_get_by_idx(0))
    Py_RETURN_NONE;
  Keys keys;
  auto plain = [&](PyObject* given) {
    if (!THPVariable_CheckExact(given)) return false;
    keys.add(THPVariable_Unpack(given));
    return true;
  };
  BorrowedOptional kept[9], grads[4];  // see recorded_forward; of output, h_n, c_n and cells
  for (int i = 0; i < 9; ++i) {
    PyObject* given = PyTuple_GET_ITEM(saved, i);
    if (given == Py_None) continue;
    if (!plain(given)) Py_RETURN_NONE;
    kept[i].set(THPVariable_Unpack(given));
  }
  const Tensor& input = **kept[0];
  const auto named = in_order(args[0], s.is_lstm(), s.is_one_step(input));
  bool any_grad = false;
  for (int i = 0; i < 4; ++i) {
    if (named[i] == Py_None) continue;
    if (!plain(named[i])) Py_RETURN_NONE;
    grads[i].set(THPVariable_Unpack(named[i]));
    any_grad = true;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(saved) - 9, first = PyTuple_GET_SIZE(needs) - count;
  auto needed = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(needs, i) == Py_True; };
  Borrowed weights;
  bool any_weight = false;
  for (Py_ssize_t i = 0, bias = 0; i < count; ++i) {
    PyObject* weight = PyTuple_GET_ITEM(saved, 9 + i);
    if (weight == Py_None) {
      PyObject* const bias_and_version = PyList_GET_ITEM(biases, bias++);
      weight = PyTuple_GET_ITEM(bias_and_version, 0);
    }
    if (!plain(weight)) Py_RETURN_NONE;
    weights.add(weight);
    any_weight |= needed(first + i);
  }
  if (!keys.only_cpu()) Py_RETURN_NONE;
  BackwardResults r;
  r.weights.resize(count);
  if (any_grad) {
    const Below scope(is_short(input, weights));
    r = cpu_backward(*grads[0], *grads[1], *grads[2], *grads[3], input, *kept[1] ? **kept[1] : Tensor(), *kept[2],
                     weights, *kept[3], *kept[4], *kept[5], *kept[6], *kept[7], *kept[8], s.mode, s.batch_first,
                     {needed(1), needed(2) || needed(3), any_weight});
  }
  auto gradients = py::reinterpret_steal<py::object>(PyTuple_New(first + count));
  if (!gradients) throw python_error();
  const Tensor none, *const of[] = {&none, &r.input, &r.h0, &r.c0};
  for (Py_ssize_t i = 0; i < first + count; ++i) {
    PyObject* item = wrap(!needed(i) ? none : i < first ? *of[i] : r.weights[i - first]);
    if (!item) throw python_error();
    PyTuple_SET_ITEM(gradients.ptr(), i, item);
  }
  return gradients.release().ptr();
}

}  // namespace

inline void add_training(py::module_& m) {
  static PyMethodDef methods[] = {
      method<3, results_in_order>("results_in_order",
                                  "results_in_order(results, mode, one_step): (output, h_n, c_n, cells) of "
                                  "LayerFunction's results or of their gradients, None for each that a call has not"),
      method<6, recorded_forward>("recorded_forward",
                                  "recorded_forward(settings, input, h0, c0, weights, recompute): (results, what to "
                                  "save, [(bias, version)]) of LayerFunction.forward"),
      method<5, recorded_backward>("recorded_backward",
                                   "recorded_backward(grads, saved, biases, settings, needs_input_grad): the gradients "
                                   "of LayerFunction.backward, or None if Python must compute them"),
      {nullptr, nullptr, 0, nullptr}};
  add_methods(m, methods);
}

}  // namespace lstmkern
