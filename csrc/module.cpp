// The Python module lstmkern._C: facts about the build and the instruction set in use, measurements, and the eager
// operators. Loading it registers the operators of ops.cpp.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "cpu/peak.h"
#include "cpu/product.h"
#include "layer.h"
#if defined(LSTMKERN_CUDA_VERSION)
#include "cuda/dispatch.h"
#endif

namespace py = pybind11;

// lstmkern/_extension.py searches the file for this text before it loads it, because code compiled for another minor
// version of torch may crash while it is loaded.
__attribute__((used)) static const char kCompiledFor[] = "lstmkern is compiled for torch " LSTMKERN_TORCH_VERSION;

namespace lstmkern {
namespace {

template <class T>
using Names = std::vector<std::pair<const char*, T>>;
const Names<DType> kTypes = {{"fp32", DType::f32}, {"fp64", DType::f64}, {"bf16", DType::bf16}, {"fp16", DType::f16}};
const Names<Cell> kModes = {
    {"LSTM", Cell::lstm}, {"GRU", Cell::gru}, {"RNN_TANH", Cell::rnn_tanh}, {"RNN_RELU", Cell::rnn_relu}};

template <class T>
T named(const char* what, const std::string& name, const Names<T>& all) {
  std::string list;
  for (const auto& known : all) {
    if (name == known.first) return known.second;
    list += std::string(list.empty() ? "" : ", ") + known.first;
  }
  throw py::value_error(std::string(what) + " must be one of " + list + ", got \"" + name + '"');
}

py::object cuda_plan(const std::string& tier, const std::string& mode, const std::string& dtype, int64_t N, int64_t H,
                     int D, bool backward) {
#if defined(LSTMKERN_CUDA_VERSION)
  py::dict plan;
  for (const auto& field :
       cuda::plan_values(tier, named("mode", mode, kModes), named("dtype", dtype, kTypes), N, H, D, backward))
    plan[field.name] = field.value;
  return plan.empty() ? py::object(py::none()) : plan;
#else
  throw std::runtime_error("lstmkern was built without CUDA: install a CUDA toolkit and build it again");
#endif
}

}  // namespace
}  // namespace lstmkern

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of lstmkern. Importing it registers torch.ops.lstmkern.*";
  lstmkern::add_eager(m);
  lstmkern::add_calls(m);
  m.def(
      "cpu_peak", &lstmkern::cpu::peak, py::arg("capability"), py::arg("rate"), py::arg("threads"), py::arg("bytes"),
      py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
      "Work per second of all threads: floating point operations (rate fp32, fp64, bf16, amx) or bytes (rate read: each"
      " thread reads its part); 0 if the instruction set or this machine does not have the rate");
  m.def(
      "cpu_product",
      [](const std::string& dtype, int64_t rows, int64_t K, int64_t columns, int gates, bool transposed, int threads,
         double seconds) {
        return lstmkern::cpu::product_seconds(
            {lstmkern::named("dtype", dtype, lstmkern::kTypes), rows, K, columns, gates, transposed}, threads, seconds);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("K"), py::arg("columns"), py::arg("gates") = 1,
      py::arg("transposed") = false, py::arg("threads") = 1, py::arg("seconds") = 0.01,
      py::call_guard<py::gil_scoped_release>(),
      "Seconds of a GEMM of [rows, K] by [K, gates * columns], packed as in a layer of this dtype; transposed: as in "
      "the"
      " GEMM of the weight gradients");
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = LSTMKERN_VERSION;
        info["torch"] = LSTMKERN_TORCH_VERSION;
        info["python"] = PY_VERSION;
        py::list capabilities;
        for (const char* name : lstmkern::cpu::capabilities()) capabilities.append(name);
        info["capabilities"] = capabilities;
        info["compiler"] = "GCC-compatible " __VERSION__;
#if defined(LSTMKERN_CUDA_VERSION)
        info["cuda"] = LSTMKERN_CUDA_VERSION;
#else
        info["cuda"] = py::none();
#endif
        py::list archs;
#if defined(LSTMKERN_CUDA_ARCHS)
        for (auto arch : py::str(LSTMKERN_CUDA_ARCHS).attr("split")(";")) archs.append(arch);
#endif
        info["cuda_archs"] = archs;
#if defined(_OPENMP)
        info["openmp"] = true;
#else
        info["openmp"] = false;
#endif
        return info;
      },
      "version, torch, python, capabilities (instruction sets), compiler, cuda (version or None), cuda_archs, openmp "
      "of this build");
  m.def(
      "cpu_capability",
      [](bool bf16) { return lstmkern::cpu::capability(bf16 ? lstmkern::DType::bf16 : lstmkern::DType::f32); },
      pybind11::arg("bf16") = false,
      "The instruction set in use: baseline, avx2 or avx512; for bf16 also avx512_bf16 or amx");
  py::dict cells;
  for (const auto& [name, cell] : lstmkern::kModes)
    cells[name] = py::make_tuple(lstmkern::gates_of(cell), lstmkern::saved_of(cell));
  m.attr("cells") = cells;  // {mode: (gates in the weights, values per unit and step that forward saves)}
  m.attr("padding") = lstmkern::kPadding;
  m.def("cuda_plan", &lstmkern::cuda_plan, py::arg("tier"), py::arg("mode"), py::arg("dtype"), py::arg("N"),
        py::arg("H"), py::arg("D") = 1, py::arg("backward") = false,
        "How the tier cluster or grid would run a layer of N sequences, H units and D directions on the current GPU: a"
        " dict of numbers, or None if it cannot run the layer. RuntimeError without CUDA");
  m.def(
      "cuda_tier_runs",
      [] {
        py::dict all;
#if defined(LSTMKERN_CUDA_VERSION)
        for (const auto& tier : lstmkern::cuda::tier_runs())
          all[tier.name] = py::make_tuple(tier.forward, tier.backward);
#endif
        return all;
      },
      "{tier: (forward, backward)}: how often each tier of CUDA kernels has run in this process");
}
