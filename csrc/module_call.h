// Whether nn.Module.__call__ has nothing to do but to call forward. To find out in Python takes half a microsecond
// more, which is a seventh of the call of a small layer.
#pragma once

#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>

#include "python.h"

namespace lstmkern {
namespace {

// What torch/nn/modules/module.py defines, when lstmkern is imported.
struct ModuleClass {
  PyObject *type, *globals, *call, *call_impl;
  std::array<PyObject*, 4> hooks, global_hooks;
  PyObject *call_name = interned("__call__"), *call_impl_name = interned("_call_impl"),
           *compiled = interned("_compiled_call_impl");

  ModuleClass() {
    const auto python = py::module_::import("torch.nn.modules.module");
    type = py::object(python.attr("Module")).release().ptr();
    globals = PyModule_GetDict(python.ptr());
    call = PyObject_GetAttr(type, call_name);
    call_impl = PyObject_GetAttr(type, call_impl_name);
    if (!call || !call_impl) throw py::error_already_set();
    hooks = {interned("_backward_hooks"), interned("_backward_pre_hooks"), interned("_forward_hooks"),
             interned("_forward_pre_hooks")};
    global_hooks = {interned("_global_backward_hooks"), interned("_global_backward_pre_hooks"),
                    interned("_global_forward_hooks"), interned("_global_forward_pre_hooks")};
  }
  static PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }
  static bool all_empty(PyObject* dict, const std::array<PyObject*, 4>& names) {
    for (PyObject* name : names) {
      PyObject* of_name = PyDict_GetItemWithError(dict, name);
      if (!of_name || !PyDict_Check(of_name) || PyDict_GET_SIZE(of_name)) return false;
    }
    return true;
  }
  static bool has(PyObject* of, PyObject* name, PyObject* value) {
    const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttr(of, name));
    return found.ptr() == value;
  }
  // What __call__ and _call_impl ask, and whether they are still torch's: torch.fx and other tools replace them. A
  // tracer or profiler may look for their frames.
  bool only_calls_forward(PyObject* module) const {
    const auto own = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (!own || !all_empty(own.ptr(), hooks) || !all_empty(globals, global_hooks)) return false;
    PyObject* compiled_call = PyDict_GetItemWithError(own.ptr(), compiled);
    return (!compiled_call || compiled_call == Py_None) && !PyDict_GetItemWithError(own.ptr(), call_impl_name) &&
           has(type, call_name, call) && has(reinterpret_cast<PyObject*>(Py_TYPE(module)), call_impl_name, call_impl) &&
           !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::Tracer) &&
           !at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
  }
};

PyObject* only_calls_forward(PyObject*, PyObject* module) {
  static const ModuleClass& of_torch = *new ModuleClass;
  const bool only = of_torch.only_calls_forward(module);
  return PyErr_Occurred() ? nullptr : wrap(only);
}

}  // namespace

inline void add_module_call(py::module_& m) {
  static PyMethodDef methods[] = {
      {"only_calls_forward", only_calls_forward, METH_O,
       "Whether nn.Module.__call__ of this module only calls forward: no hooks, and nothing replaces it"},
      {nullptr, nullptr, 0, nullptr}};
  add_methods(m, methods);
}

}  // namespace lstmkern
