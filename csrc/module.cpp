// The Python module lstmkern._C: what was built, and what runs. Loading it registers the operators of ops.cpp.
#include <pybind11/pybind11.h>

#include <map>
#include <string>

#include "cpu/peak.h"
#include "cpu/product.h"
#include "eager.h"
#include "layer.h"
#if defined(LSTMKERN_CUDA_VERSION)
#include "cuda/dispatch.h"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of lstmkern. Importing it registers torch.ops.lstmkern.*";
  lstmkern::add_eager(m);
  m.def("cpu_peak", &lstmkern::cpu::peak, py::arg("capability"), py::arg("rate"), py::arg("threads"), py::arg("bytes"),
        py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "Work per second of all threads: floating point operations (rate fp32, fp64, bf16, amx) or bytes (read, each"
        " thread its own share of them); 0 where the instruction set or this machine lacks it");
  m.def(
      "cpu_product",
      [](const std::string& dtype, int64_t rows, int64_t K, int64_t columns, int gates, bool down, int threads,
         double seconds) {
        const std::map<std::string, lstmkern::DType> types = {{"fp32", lstmkern::DType::f32},
                                                              {"fp64", lstmkern::DType::f64},
                                                              {"bf16", lstmkern::DType::bf16},
                                                              {"fp16", lstmkern::DType::f16}};
        const auto found = types.find(dtype);
        if (found == types.end()) throw py::value_error("dtype must be fp32, fp64, bf16 or fp16");
        return lstmkern::cpu::product_seconds({found->second, rows, K, columns, gates, down}, threads, seconds);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("K"), py::arg("columns"), py::arg("gates") = 1,
      py::arg("down") = false, py::arg("threads") = 1, py::arg("seconds") = 0.01,
      py::call_guard<py::gil_scoped_release>(),
      "Seconds for rows x K times K x (gates * columns), packed as the weights of a layer of this dtype, without"
      " anything else that a layer does; down: a product of weight gradients");
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["version"] = LSTMKERN_VERSION;
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
      "version, compiler, cuda (version or None), cuda_archs, openmp of this build");
  m.def(
      "cpu_capability",
      [](bool bf16) { return lstmkern::cpu::capability(bf16 ? lstmkern::DType::bf16 : lstmkern::DType::f32); },
      pybind11::arg("bf16") = false,
      "The instruction set in use: baseline, avx2 or avx512; for bf16 also avx512_bf16 or amx");
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
