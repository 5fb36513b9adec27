// Python objects as arguments and results of functions that are called without pybind11's conversions, which take
// longer than a small layer. A header, so that only module.cpp compiles Python's and pybind11's headers.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "below.h"

namespace py = pybind11;

namespace lstmkern {
namespace {

bool is_symbolic(const Tensor& t) { return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides(); }

// Whether a layer with all its weights takes a few microseconds at most, for which it keeps the GIL: giving it to
// another thread and back takes 0.2 and, where one waits for it, more.
bool is_short(const Tensor& input, at::TensorList weights) {
  if (is_symbolic(input)) return false;
  int64_t products = 0;
  for (const Tensor& w : weights) {
    if (is_symbolic(w)) return false;
    products += w.numel();
  }
  return products * (input.dim() ? input.numel() / std::max<int64_t>(input.size(-1), 1) : 1) <= int64_t(1) << 16;
}

// Lives while C++ computes below autograd, without Python.
class Below {
 public:
  explicit Below(bool keep_gil = false) : thread_(keep_gil ? nullptr : PyEval_SaveThread()) {}
  ~Below() {
    if (thread_) PyEval_RestoreThread(thread_);
  }
  Below(const Below&) = delete;
  Below& operator=(const Below&) = delete;

 private:
  PyThreadState* const thread_;                 // pybind11's gil_scoped_release does more than twice as much
  at::AutoDispatchBelowADInplaceOrView below_;  // results are never views of other tensors
};

// A tuple of new references, which it takes over; null, with an error set, if one of them is.
template <class... Items>
PyObject* tuple_of(Items... items) {
  PyObject* tuple = (items && ...) ? PyTuple_New(sizeof...(items)) : nullptr;
  Py_ssize_t i = 0;
  if (tuple)
    (PyTuple_SET_ITEM(tuple, i++, items), ...);
  else
    (Py_XDECREF(items), ...);
  return tuple;
}

// THPVariable_Wrap makes None of an undefined tensor. A result is moved: where C++ keeps a reference to it, too, giving
// that back takes the GIL once more.
PyObject* wrap(const Tensor& t) { return THPVariable_Wrap(t); }
PyObject* wrap(Tensor&& t) { return THPVariable_Wrap(std::move(t)); }
PyObject* wrap(const OptionalTensor& t) { return THPVariable_Wrap(t ? *t : Tensor()); }
PyObject* wrap(bool value) { return PyBool_FromLong(value); }

// The tensors of Python objects for a list of tensors. In torch 2.13 a second reference to a tensor of Python takes the
// GIL and counts in Python; a reference to the object costs one addition.
class Borrowed {
 public:
  Borrowed() = default;
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() {
    for (Tensor& t : tensors_) Traits::destroyBorrow(t);
    for (PyObject* object : objects_) Py_DECREF(object);
  }
  void add(PyObject* tensor) {
    objects_.push_back(Py_NewRef(tensor));
    tensors_.push_back(Traits::createBorrow(THPVariable_Unpack(tensor)));
  }
  operator at::TensorList() const { return tensors_; }
  size_t size() const { return tensors_.size(); }
  const Tensor& operator[](size_t i) const { return tensors_[i]; }
  PyObject* object(size_t i) const { return objects_[i]; }

 private:
  using Traits = c10::MaybeOwnedTraits<Tensor>;
  c10::SmallVector<Tensor, 8> tensors_;
  c10::SmallVector<PyObject*, 8> objects_;
};

// The same for one tensor or none, of an object that outlives this one.
class BorrowedOptional {
 public:
  BorrowedOptional() = default;
  BorrowedOptional(const BorrowedOptional&) = delete;
  BorrowedOptional& operator=(const BorrowedOptional&) = delete;
  ~BorrowedOptional() {
    if (value_) c10::MaybeOwnedTraits<Tensor>::destroyBorrow(*value_);
  }
  void set(const Tensor& t) { value_.emplace(c10::MaybeOwnedTraits<Tensor>::createBorrow(t)); }
  const OptionalTensor& operator*() const { return value_; }

 private:
  OptionalTensor value_;
};

// A tensor; TypeError for anything else.
const Tensor& tensor_in(PyObject* given) {
  TORCH_CHECK_TYPE(THPVariable_Check(given), "expected a tensor, got ", Py_TYPE(given)->tp_name);
  return THPVariable_Unpack(given);
}
OptionalTensor optional_in(PyObject* given) {
  return given == Py_None ? OptionalTensor() : OptionalTensor(tensor_in(given));
}

c10::string_view text_in(PyObject* given) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(given, &size);
  if (!data) throw python_error();
  return {data, static_cast<size_t>(size)};
}

// A function of exactly `count` arguments, for METH_FASTCALL.
template <Py_ssize_t count, PyObject* (*call)(PyObject* const*)>
PyObject* counted(PyObject*, PyObject* const* args, Py_ssize_t n) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(n == count, "expected ", count, " arguments, got ", n);
  return call(args);
  END_HANDLE_TH_ERRORS
}
template <Py_ssize_t count, PyObject* (*call)(PyObject* const*)>
PyMethodDef method(const char* name, const char* about) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(counted<count, call>)), METH_FASTCALL,
          about};
}

// Adds functions that live as long as the module; the last entry is empty.
void add_methods(py::module_& m, PyMethodDef* methods) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace
}  // namespace lstmkern
