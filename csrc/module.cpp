// The Python module lstmkern._C: facts about the build and the instruction set in use, measurements, and the eager
// operators. Loading it registers the operators of ops.cpp.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "calls.h"
#include "cpu/calls.h"
#include "cpu/cost.h"
#include "cpu/cpus.h"
#include "cpu/peak.h"
#include "cpu/product.h"
#include "cpu/team.h"
#include "eager.h"
#include "layer.h"
#include "module_call.h"
#include "training.h"
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

const Names<cpu::Division> kDivisions = {
    {"chosen", cpu::Division::chosen}, {"rows", cpu::Division::rows}, {"units", cpu::Division::units}};

template <class T>
T named(const char* what, const std::string& name, const Names<T>& all) {
  std::string list;
  for (const auto& known : all) {
    if (name == known.first) return known.second;
    list += std::string(list.empty() ? "" : ", ") + known.first;
  }
  throw py::value_error(std::string(what) + " must be one of " + list + ", got \"" + name + '"');
}

std::pair<int, const char*> fix_threads(int threads, const std::string& division) {
  if (threads < 0) throw py::value_error("threads must be at least 0, got " + std::to_string(threads));
  const auto before = cpu::fix_threads(threads, named("division", division, kDivisions));
  return {before.first, kDivisions[int(before.second)].first};
}

std::tuple<int, const char*, double> choose_threads(const std::string& mode, const std::string& dtype, int64_t T,
                                                    int64_t N, int64_t I, int64_t H, int threads,
                                                    const std::string& pass, int64_t proj_size, bool asleep) {
  const bool backward = named<bool>("pass_", pass, {{"infer", false}, {"forward", false}, {"backward", true}});
  if (T < 1 || N < 1 || I < 1 || H < 1 || threads < 1 || proj_size < 0)
    throw py::value_error("T, N, I, H and threads must be at least 1, and proj_size at least 0");
  Backward layer{};
  layer.cell = named("mode", mode, kModes);
  layer.dtype = named("dtype", dtype, kTypes);
  layer.T = T, layer.N = N, layer.I = I, layer.H = H, layer.P = proj_size ? proj_size : H;
  const std::vector<int64_t> active(T, N);
  layer.active = active.data();
  char there;  // only whether a pointer is null matters
  if (proj_size) layer.weights[0].w_hr = &there;
  if (pass != "infer" && saved_of(layer.cell)) layer.gates.data = &there;
  layer.grad_input.data = &there;
  layer.want_weights = true;
  cpu::Work work = cpu::work_of(layer, backward);
  work.asleep = asleep;
  const int chosen = cpu::choose_threads(work, threads);
  const bool rows = cpu::divides_rows(work, chosen);
  return {chosen, rows ? "rows" : "units", cpu::nanoseconds(work, chosen, rows) / 1000};
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
  lstmkern::add_training(m);
  lstmkern::add_calls(m);
  lstmkern::add_module_call(m);
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
      "fix_threads", &lstmkern::fix_threads, py::arg("threads"), py::arg("division") = "chosen",
      "Makes every layer use exactly this number of threads (0: as many as are estimated to pay off) and divide"
      " sequences (rows), hidden units (units) or what is estimated to be faster (chosen); returns the setting before."
      " For tests and benchmarks");
  m.def("choose_threads", &lstmkern::choose_threads, py::arg("mode"), py::arg("dtype"), py::arg("T"), py::arg("N"),
        py::arg("I"), py::arg("H"), py::arg("threads"), py::arg("pass_") = "infer", py::arg("proj_size") = 0,
        py::arg("asleep") = false,
        "(threads, division, microseconds): the choice of a pass (infer, forward or backward in training) over a layer"
        " if it may use this many threads, with the instruction set in use, and its estimated time; asleep: if the"
        " other threads sleep");
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
  auto limits = [](const lstmkern::cpu::Cpus& cpus) {
    py::dict all;
    all["mask"] = cpus.mask;
    all["found"] = cpus.found;
    all["threads"] = cpus.threads;
    all["from"] = cpus.from;
    return all;
  };
  m.def(
      "cpus", [limits] { return limits(lstmkern::cpu::cpus()); },
      "What limits the threads of a call, read once: CPUs in the affinity mask, CPUs found with the quotas of cgroups,"
      " the most threads (LSTMKERN_NUM_THREADS, or the CPUs found), and from where. ValueError for a bad variable");
  m.def(
      "read_cpus",
      [limits](const std::string& root, int mask, const std::string& variable) {
        return limits(lstmkern::cpu::read_cpus(root, mask, variable.c_str()));
      },
      py::arg("root"), py::arg("mask"), py::arg("variable") = "",
      "The same for a file system that begins at root, an affinity mask of so many CPUs and a value of the variable");
  // For tests of csrc/cpu/calls.h.
  m.def("add_calls", &lstmkern::cpu::add_calls, py::arg("number"),
        "Changes the number of calls at this time, which share the CPUs");
  m.def(
      "threads_for", [](double work, int most) { return lstmkern::cpu::Call(work).threads(most); }, py::arg("work"),
      py::arg("most"), "The threads that a call of so much work on this thread may use now");
  m.def(
      "team_ended",
      [](double work, bool region, int threads, double total, double lost) {
        const lstmkern::cpu::Call call(work);
        lstmkern::cpu::team_ended(region ? lstmkern::cpu::Team::region : lstmkern::cpu::Team::own, threads, total,
                                  lost);
      },
      py::arg("work"), py::arg("region"), py::arg("threads"), py::arg("total"), py::arg("lost"),
      "Says that a team for such a call, a parallel region or our own threads, took `total` seconds, of which its "
      "caller "
      "waited `lost`");
  m.def(
      "alone_ended",
      [](double work, double seconds) {
        const lstmkern::cpu::Call call(work);
        lstmkern::cpu::alone_ended(seconds);
      },
      py::arg("work"), py::arg("seconds"),
      "Says that such a call took so long alone, although it could have had a team");
  m.def(
      "region_for",
      [](double work) {
        const lstmkern::cpu::Call call(work);
        return lstmkern::cpu::team_now() == lstmkern::cpu::Team::region;
      },
      py::arg("work"), "Whether the team for such a call is a parallel region and not our own threads");
  m.def(
      "team_runs",
      [] {
        py::dict all;
        for (int size = 1; size < lstmkern::cpu::kTeamSizes; ++size)
          if (const int64_t runs = lstmkern::cpu::team_runs(size)) all[py::int_(size)] = runs;
        return all;
      },
      "{threads: how often a team of so many threads has run a direction of a layer in this process}");
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
