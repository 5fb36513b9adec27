// Whole calls of a module, a cell or a stack of layers for Python: arguments, checks, results and kernels in one C++
// function. Each takes the calls that a CPU kernel alone computes: plain tensors, no autocast, no mode or transform
// that must see the call, nothing that torch.nn would refuse. For any other call it returns None and has done nothing,
// and Python goes the long way (functional.py, autograd.py), which also words the errors. Where a gradient is needed,
// each layer is a call of the argument `record`: LayerFunction.apply in autograd.py.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <optional>

#include "training.h"

namespace lstmkern {
namespace {

// A stack of layers and what it is called with.
struct Stack {
  PyObject* mode = nullptr;
  c10::string_view mode_name;
  bool batch_first = false, cells = false;
  int64_t layers = 0, directions = 1;
  c10::MaybeOwned<Tensor> input;  // borrowed from an argument, or a view of it
  Tensor h0;                      // undefined: the states start at zero
  OptionalTensor c0, batch_sizes, lengths, resets;
  Borrowed weights;                  // of all layers
  c10::SmallVector<size_t, 4> ends;  // of each layer's weights
  Keys keys;
  const bool with_grad = at::GradMode::is_enabled();
  bool is_recorded = false;  // by autograd, for a tensor that requires a gradient
  bool same_dtype = true;

  bool set_mode(PyObject* given) {
    if (!given || !PyUnicode_CheckExact(given)) return false;
    mode_name = text_in(mode = given);
    return true;
  }
  bool set_input(PyObject* given) {
    if (!THPVariable_CheckExact(given)) return false;
    const Tensor& t = THPVariable_Unpack(given);
    input = c10::MaybeOwned<Tensor>::borrowed(t);
    keys.add(t);
    is_recorded |= with_grad && t.requires_grad();
    return true;
  }
  // A tensor of the input's dtype; input must be set.
  const Tensor* plain(PyObject* given) {
    if (!THPVariable_CheckExact(given)) return nullptr;
    const Tensor& t = THPVariable_Unpack(given);
    keys.add(t);
    is_recorded |= with_grad && t.requires_grad();
    same_dtype &= t.dtype() == input->dtype();
    return &t;
  }
  bool add_weight(PyObject* given) {
    const Tensor* t = given ? plain(given) : nullptr;
    if (t) weights.add(given);
    return t != nullptr;
  }
  bool set_h0(PyObject* given) {
    const Tensor* t = plain(given);
    if (t) h0 = *t;
    return t != nullptr;
  }
  bool set_c0(PyObject* given) {
    const Tensor* t = plain(given);
    if (t) c0 = *t;
    return t != nullptr;
  }
  // None, or a tensor of another dtype.
  bool set(OptionalTensor& to, PyObject* given) {
    if (given == Py_None) return true;
    if (!THPVariable_CheckExact(given)) return false;
    to = THPVariable_Unpack(given);
    keys.add(*to);
    return true;
  }

  bool is_lstm() const { return mode_name == "LSTM"; }

  // Whether the kernels alone compute the call; all tensors must be set.
  bool is_plain() const {
    return same_dtype && keys.only_cpu() && !at::impl::torch_function_mode_enabled() &&
           !at::autocast::is_autocast_enabled(at::kCPU) && !torch::autograd::ForwardADLevel::try_get_by_idx(0);
  }

  ForwardResults run(PyObject* record) const {
    ForwardResults r;
    std::vector<Tensor> h_ns, c_ns;
    for (int64_t k = 0, begin = 0; k < layers; begin = ends[k++]) {
      Tensor h = h0;
      OptionalTensor c = c0;
      if (layers > 1 && h0.defined()) {
        h = h0.narrow(0, k * directions, directions);
        if (c0) c = c0->narrow(0, k * directions, directions);
      }
      const Tensor above = k ? r.output : Tensor();
      const Tensor& x = k ? above : *input;
      const auto of_layer = at::TensorList(weights).slice(begin, ends[k] - begin);
      const bool with_cells = cells && k + 1 == layers;
      r = is_recorded
              ? recorded(record, x, h, c, of_layer, with_cells)
              : cpu_forward(x, h, c, of_layer, batch_sizes, lengths, resets, mode_name, batch_first, false, with_cells);
      if (layers > 1) h_ns.push_back(r.h_n);
      if (layers > 1 && r.c_n.defined()) c_ns.push_back(r.c_n);
    }
    if (h_ns.size()) r.h_n = at::cat(h_ns);
    if (c_ns.size()) r.c_n = at::cat(c_ns);
    return r;
  }

 private:
  // A layer by way of autograd.LayerFunction.
  ForwardResults recorded(PyObject* record, const Tensor& x, const Tensor& h, const OptionalTensor& c,
                          at::TensorList of_layer, bool with_cells) const {
    c10::SmallVector<py::object, 14> args;
    auto add = [&](PyObject* arg) {
      args.push_back(py::reinterpret_steal<py::object>(arg));
      if (!arg) throw python_error();
    };
    add(tuple_of(Py_NewRef(mode), wrap(batch_first), wrap(with_cells), wrap(false), wrap(batch_sizes), wrap(lengths),
                 wrap(resets)));
    add(wrap(x)), add(wrap(h)), add(wrap(c));
    for (const Tensor& w : of_layer) add(wrap(w));
    const auto found = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(record, reinterpret_cast<PyObject* const*>(args.data()), args.size(), nullptr));
    if (!found) throw python_error();
    ForwardResults r;
    const auto results = in_order(found.ptr(), is_lstm(), x.dim() == 2 && !batch_sizes);
    Tensor* const to[] = {&r.output, &r.h_n, &r.c_n, &r.cells};
    for (size_t i = 0; i < results.size(); ++i)
      if (results[i] != Py_None) *to[i] = tensor_in(results[i]);
    return r;
  }
};

// Lives while a stack is computed: below autograd, unless autograd records its layers.
struct Scope {
  explicit Scope(const Stack& s) {
    if (!s.is_recorded) below.emplace(is_short(*s.input, s.weights));
  }
  std::optional<Below> below;
};

// The attributes of a module in its __dict__. Those that are found elsewhere (a property, say) are left to Python.
class Attributes {
 public:
  explicit Attributes(PyObject* module)
      : dict_(py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr))) {
    if (!dict_) throw python_error();
  }
  PyObject* get(PyObject* name) const { return found(PyDict_GetItemWithError(dict_.ptr(), name)); }
  bool get(PyObject* name, bool& to) const {
    PyObject* value = get(name);
    to = value == Py_True;
    return value == Py_True || value == Py_False;
  }
  bool get(PyObject* name, int64_t& to) const {
    PyObject* value = get(name);
    if (!value || !PyLong_CheckExact(value)) return false;
    to = PyLong_AsLongLong(value);
    if (to == -1 && PyErr_Occurred()) throw python_error();
    return true;
  }
  static PyObject* found(PyObject* borrowed) {
    if (!borrowed && PyErr_Occurred()) throw python_error();
    return borrowed;
  }

 private:
  py::object dict_;
};

// Strings that Python compares by identity.
struct AttributeNames {
#define LSTMKERN_NAME(name) PyObject* name = PyUnicode_InternFromString(#name)
  LSTMKERN_NAME(_parameters);
  LSTMKERN_NAME(_all_weights);
  LSTMKERN_NAME(_assigned_weights);
  LSTMKERN_NAME(mode);
  LSTMKERN_NAME(bidirectional);
  LSTMKERN_NAME(batch_first);
  LSTMKERN_NAME(input_size);
  LSTMKERN_NAME(hidden_size);
  LSTMKERN_NAME(proj_size);
  LSTMKERN_NAME(num_layers);
  LSTMKERN_NAME(training);
  LSTMKERN_NAME(dropout);
  LSTMKERN_NAME(bias);
  LSTMKERN_NAME(weight_ih);
  LSTMKERN_NAME(weight_hh);
  LSTMKERN_NAME(bias_ih);
  LSTMKERN_NAME(bias_hh);
#undef LSTMKERN_NAME
};
const AttributeNames& names() {
  static const AttributeNames& all = *new AttributeNames;  // never destroyed, as Python may have ended before
  return all;
}

// The weights of LSTM, GRU or RNN in the order of its layers: parameters that no tensor of an assigned _flat_weights
// replaces and that no parametrization computes.
bool take_weights(Stack& s, const Attributes& module) {
  const AttributeNames& n = names();
  PyObject *parameters = module.get(n._parameters), *all = module.get(n._all_weights),
           *assigned = module.get(n._assigned_weights);
  if (!parameters || !PyDict_CheckExact(parameters) || !all || !PyList_CheckExact(all) ||
      (assigned && !(PyDict_CheckExact(assigned) && PyDict_GET_SIZE(assigned) == 0)) ||
      PyList_GET_SIZE(all) != s.layers * s.directions)
    return false;
  for (Py_ssize_t k = 0; k < PyList_GET_SIZE(all); ++k) {
    PyObject* of_direction = PyList_GET_ITEM(all, k);
    if (!PyList_CheckExact(of_direction)) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(of_direction); ++i)
      if (!s.add_weight(Attributes::found(PyDict_GetItemWithError(parameters, PyList_GET_ITEM(of_direction, i)))))
        return false;
    if ((k + 1) % s.directions == 0) s.ends.push_back(s.weights.size());
  }
  return s.layers > 0;
}

// (h, c) of an LSTM or h of another cell; None for zeros.
bool take_states(Stack& s, PyObject* hx, bool lstm) {
  if (hx == Py_None) return true;
  if (!lstm) return s.set_h0(hx);
  return PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2 && s.set_h0(PyTuple_GET_ITEM(hx, 0)) &&
         s.set_c0(PyTuple_GET_ITEM(hx, 1));
}

bool has_sizes(const Tensor& t, std::initializer_list<int64_t> sizes) { return t.sizes() == at::IntArrayRef(sizes); }

// LSTM, GRU or RNN called with (input, hx, lengths, resets, return_cells): what forward returns.
PyObject* run_module(PyObject* const* args) {
  const AttributeNames& n = names();
  const Attributes module(args[0]);
  Stack s;
  bool bidirectional = false, training = false;
  int64_t input_size = 0;
  if (!s.set_input(args[1]) || !module.get(n.bidirectional, bidirectional) || !module.get(n.num_layers, s.layers))
    Py_RETURN_NONE;
  s.directions = bidirectional ? 2 : 1;
  if (!take_weights(s, module) || !s.set_mode(module.get(n.mode)) || !module.get(n.batch_first, s.batch_first) ||
      !module.get(n.input_size, input_size))
    Py_RETURN_NONE;
  const bool lstm = s.is_lstm();
  s.cells = args[5] == Py_True;
  if (s.layers > 1) {  // dropout between layers
    PyObject* dropout = module.get(n.dropout);
    if (!module.get(n.training, training) || !dropout || !PyFloat_CheckExact(dropout) ||
        (training && PyFloat_AS_DOUBLE(dropout) != 0))
      Py_RETURN_NONE;
  }
  if (!take_states(s, args[2], lstm) || !s.set(s.lengths, args[3]) || !s.set(s.resets, args[4]) || !s.is_plain())
    Py_RETURN_NONE;
  const at::IntArrayRef sizes = s.input->sizes();
  const int64_t rank = sizes.size();
  if ((rank != 3 && rank != 2) || sizes.back() != input_size) Py_RETURN_NONE;
  const int64_t batch_dim = s.batch_first ? 0 : 1, T = sizes[rank == 3 && s.batch_first ? 1 : 0],
                N = rank == 3 ? sizes[batch_dim] : 1, D = s.layers * s.directions;
  if (T == 0) Py_RETURN_NONE;
  if (s.h0.defined()) {
    int64_t H = 0, P = 0;
    auto fits = [&](const Tensor& t, int64_t columns) {
      return rank == 3 ? has_sizes(t, {D, N, columns}) : has_sizes(t, {D, columns});
    };
    if (!module.get(n.hidden_size, H) || !module.get(n.proj_size, P) || !fits(s.h0, P ? P : H) ||
        (s.c0 && !fits(*s.c0, H)))
      Py_RETURN_NONE;
  }
  if (s.lengths &&
      (s.lengths->scalar_type() != at::kLong || !(rank == 3 ? has_sizes(*s.lengths, {N}) : s.lengths->dim() == 0)))
    Py_RETURN_NONE;
  if (s.resets && (s.resets->scalar_type() != at::kBool || s.resets->sizes() != sizes.slice(0, rank - 1)))
    Py_RETURN_NONE;
  ForwardResults r;
  {
    const Scope scope(s);
    if (rank == 2) {  // one sequence: a batch of one
      s.input = c10::MaybeOwned<Tensor>::owned(s.input->unsqueeze(batch_dim));
      if (s.h0.defined()) s.h0 = s.h0.unsqueeze(1);
      if (s.c0) s.c0 = s.c0->unsqueeze(1);
      if (s.lengths) s.lengths = s.lengths->unsqueeze(0);
      if (s.resets) s.resets = s.resets->unsqueeze(batch_dim);
    }
    r = s.run(args[6]);
    if (rank == 2) {
      r.output = r.output.squeeze(batch_dim);
      r.h_n = r.h_n.squeeze(1);
      if (lstm) r.c_n = r.c_n.squeeze(1);
      if (s.cells) r.cells = r.cells.squeeze(batch_dim);
    }
  }
  if (!lstm) return tuple_of(wrap(std::move(r.output)), wrap(std::move(r.h_n)));
  PyObject* states = tuple_of(wrap(std::move(r.h_n)), wrap(std::move(r.c_n)));
  return s.cells ? tuple_of(wrap(std::move(r.output)), states, wrap(std::move(r.cells)))
                 : tuple_of(wrap(std::move(r.output)), states);
}

// LSTMCell, GRUCell or RNNCell called with (mode, input, hx): what forward returns.
PyObject* run_cell(PyObject* const* args) {
  const AttributeNames& n = names();
  const Attributes module(args[0]);
  Stack s;
  bool bias = false;
  int64_t input_size = 0, H = 0;
  PyObject* parameters = module.get(n._parameters);
  if (!s.set_mode(args[1]) || !s.set_input(args[2]) || !parameters || !PyDict_CheckExact(parameters) ||
      !module.get(n.bias, bias) || !module.get(n.input_size, input_size) || !module.get(n.hidden_size, H))
    Py_RETURN_NONE;
  PyObject* const of_cell[] = {n.weight_ih, n.weight_hh, n.bias_ih, n.bias_hh};
  for (int i = 0; i < (bias ? 4 : 2); ++i)
    if (!s.add_weight(Attributes::found(PyDict_GetItemWithError(parameters, of_cell[i])))) Py_RETURN_NONE;
  const bool lstm = s.is_lstm();
  if (!take_states(s, args[3], lstm) || !s.is_plain()) Py_RETURN_NONE;
  const int64_t rank = s.input->dim(), N = rank == 2 ? s.input->size(0) : 1;
  auto state_fits = [&](const Tensor& t) { return rank == 2 ? has_sizes(t, {N, H}) : has_sizes(t, {H}); };
  if ((rank != 2 && rank != 1) || s.input->size(-1) != input_size || (s.h0.defined() && !state_fits(s.h0)) ||
      (s.c0 && !state_fits(*s.c0)))
    Py_RETURN_NONE;
  s.layers = 1;
  s.ends.push_back(s.weights.size());
  s.cells = lstm;
  ForwardResults r;
  {
    const Scope scope(s);
    if (rank == 1) {
      s.input = c10::MaybeOwned<Tensor>::owned(s.input->unsqueeze(0));
      if (s.h0.defined()) s.h0 = s.h0.unsqueeze(0);
      if (s.c0) s.c0 = s.c0->unsqueeze(0);
    }
    r = s.run(args[4]);
    if (rank == 1) {
      r.output = r.output.squeeze(0);
      if (lstm) r.cells = r.cells.squeeze(0);
    }
  }
  return lstm ? tuple_of(wrap(std::move(r.output)), wrap(std::move(r.cells))) : wrap(std::move(r.output));
}

// A stack of functional.py, with the arguments of run_stack() there except for dropout: (output, h_n, c_n, cells).
PyObject* run_stack(PyObject* const* args) {
  Stack s;
  PyObject *h0 = args[2], *c0 = args[3], *layers = args[4];
  if (!s.set_mode(args[0]) || !s.set_input(args[1]) || !PyList_CheckExact(layers) || (h0 != Py_None && !s.set_h0(h0)) ||
      (c0 != Py_None && !s.set_c0(c0)))
    Py_RETURN_NONE;
  s.layers = PyList_GET_SIZE(layers);
  for (int64_t k = 0; k < s.layers; ++k) {
    PyObject* layer = PyList_GET_ITEM(layers, k);
    if (!PyList_CheckExact(layer)) Py_RETURN_NONE;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(layer); ++i)
      if (!s.add_weight(PyList_GET_ITEM(layer, i))) Py_RETURN_NONE;
    s.ends.push_back(s.weights.size());
  }
  s.directions = PyLong_AsLongLong(args[5]);
  s.batch_first = args[6] == Py_True;
  s.cells = args[10] == Py_True;
  if (s.layers == 0 || !s.set(s.batch_sizes, args[7]) || !s.set(s.lengths, args[8]) || !s.set(s.resets, args[9]) ||
      !s.is_plain())
    Py_RETURN_NONE;
  ForwardResults r;
  {
    const Scope scope(s);
    r = s.run(args[11]);
  }
  return tuple_of(wrap(std::move(r.output)), wrap(std::move(r.h_n)), wrap(std::move(r.c_n)), wrap(std::move(r.cells)));
}

}  // namespace

inline void add_calls(py::module_& m) {
  static PyMethodDef methods[] = {
      method<7, run_module>("run_module",
                            "run_module(module, input, hx, lengths, resets, return_cells, record): what forward of "
                            "LSTM, GRU or RNN returns, or None if Python must compute it"),
      method<5, run_cell>("run_cell",
                          "run_cell(cell, mode, input, hx, record): what forward of a cell returns, or None if Python "
                          "must compute it"),
      method<12, run_stack>("run_stack",
                            "run_stack(mode, input, h0, c0, weights, directions, batch_first, batch_sizes, lengths, "
                            "resets, cells, record): (output, h_n, c_n, cells) of layers, or None if Python must "
                            "compute them"),
      {nullptr, nullptr, 0, nullptr}};
  add_methods(m, methods);
}

}  // namespace lstmkern
