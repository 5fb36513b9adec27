// Runs any tier on the simulator: one layer, forward or backward, on plain arrays of the caller. Every array is copied
// to guarded "device" memory first and the results are copied back. Matrix products are plain loops.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "../../csrc/cuda/dispatch.h"
#include "arguments.h"
#include "simt.h"

using namespace lstmkern;

namespace {

struct HostProducts final : cuda::Products {
  int64_t calls = 0;
  static size_t at(const cuda::Matrix& m, int64_t i, int64_t k) {
    return m.transposed ? k * m.stride + i : i * m.stride + k;
  }
  static double get(const cuda::Matrix& m, int64_t i, int64_t k) {
    const size_t n = at(m, i, k);
    switch (m.dtype) {
      case DType::f32: return static_cast<const float*>(m.data)[n];
      case DType::f64: return static_cast<const double*>(m.data)[n];
      case DType::bf16: return cuda::widen(static_cast<const cuda::bf16*>(m.data)[n]);
      default: return cuda::widen(static_cast<const cuda::f16*>(m.data)[n]);
    }
  }
  static void set(const cuda::Matrix& m, int64_t i, int64_t k, double v) {
    const size_t n = at(m, i, k);
    switch (m.dtype) {
      case DType::f32: static_cast<float*>(m.data)[n] = float(v); return;
      case DType::f64: static_cast<double*>(m.data)[n] = v; return;
      case DType::bf16: cuda::narrow(float(v), static_cast<cuda::bf16*>(m.data)[n]); return;
      default: cuda::narrow(float(v), static_cast<cuda::f16*>(m.data)[n]); return;
    }
  }
  void multiply(const cuda::Matrix& out, const cuda::Matrix& a, const cuda::Matrix& b, bool add) override {
    ++calls;
    if (out.rows != a.rows || out.columns != b.columns || a.columns != b.rows || a.dtype != b.dtype)
      throw simt::Error("matrix product: the shapes do not match");
    if (out.dtype != (a.dtype == DType::f64 ? DType::f64 : DType::f32))
      throw simt::Error("matrix product: sums would be rounded to 16 bits");
    if (add && out.dtype != a.dtype) throw simt::Error("matrix product: ATen cannot add to a result of another type");
    std::vector<double> left(a.columns), right(b.rows * b.columns);
    for (int64_t k = 0; k < b.rows; ++k)
      for (int64_t j = 0; j < b.columns; ++j) right[k * b.columns + j] = get(b, k, j);
    std::vector<double> sums(out.columns);
    for (int64_t i = 0; i < out.rows; ++i) {
      for (int64_t j = 0; j < out.columns; ++j) sums[j] = add ? get(out, i, j) : 0;
      for (int64_t k = 0; k < a.columns; ++k) {
        const double v = get(a, i, k);
        for (int64_t j = 0; j < out.columns; ++j) sums[j] += v * right[k * b.columns + j];
      }
      for (int64_t j = 0; j < out.columns; ++j) set(out, i, j, sums[j]);
    }
  }
};

const char* const kTiers[] = {"stepwise", "cluster", "grid", "dispatch"};

// The tier of the caller's choice, or the one that the dispatch table chooses.
template <class L>
cuda::Choice chosen(int64_t number, const L& layer) {
  const cuda::Tier* tier = cuda::find_tier(kTiers[number]);
  return tier ? cuda::Choice{tier, tier->pass(layer).workspace(layer)} : cuda::tier_for(layer);
}

// Runs the layer and returns the name of the tier that did.
template <class L>
const char* run(int64_t number, const L& layer) {
  const cuda::Choice choice = chosen(number, layer);
  if (!choice.workspace) throw simt::Error(std::string("not for the tier ") + choice.tier->name);
  HostProducts products;
  choice.tier->pass(layer).run(layer, {simt::allocate(choice.workspace, "workspace"), &products, nullptr});
  return choice.tier->name;
}

size_t size_of(int64_t dtype) { return dtype == 0 ? 4 : dtype == 1 ? 8 : 2; }

// How an array is stored on the device: in one piece, as in the caller's memory, or in pieces that are further apart.
struct Pieces {
  int64_t count, bytes, stride;  // how many; the bytes of one; from one to the next
  static Pieces one(int64_t bytes) { return {1, bytes, bytes}; }
};

// "Device" copies of the caller's arrays.
class Memory {
 public:
  Memory() { simt::free_all(); }
  ~Memory() { simt::free_all(); }
  void* in(const void* from, Pieces pieces, const char* name) {
    if (!from) return nullptr;
    void* p = simt::allocate_pieces(pieces.count, pieces.bytes, pieces.stride, name);
    for (int64_t i = 0; i < pieces.count; ++i)
      std::memcpy(static_cast<char*>(p) + i * pieces.stride, static_cast<const char*>(from) + i * pieces.bytes,
                  pieces.bytes);
    return p;
  }
  void* out(void* to, Pieces pieces, const char* name) {
    if (!to) return nullptr;
    void* p = simt::allocate_pieces(pieces.count, pieces.bytes, pieces.stride, name);
    results_.push_back({static_cast<char*>(to), static_cast<const char*>(p), pieces});
    return p;
  }
  void* in(const void* from, int64_t bytes, const char* name) { return in(from, Pieces::one(bytes), name); }
  void* out(void* to, int64_t bytes, const char* name) { return out(to, Pieces::one(bytes), name); }
  void finish() {
    simt::check_guards();
    for (auto& r : results_)
      for (int64_t i = 0; i < r.pieces.count; ++i)
        std::memcpy(r.to + i * r.pieces.bytes, r.from + i * r.pieces.stride, r.pieces.bytes);
  }

 private:
  struct Result {
    char* to;
    const char* from;
    Pieces pieces;
  };
  std::vector<Result> results_;
};

void set_device(const Arguments& a) {
  static int new_number = 1000;  // numbers given by callers are smaller
  simt::device() = simt::Device{};
  simt::device().number = a.device_number ? int(a.device_number) : new_number++;
  if (a.multiprocessors) simt::device().multiprocessors = unsigned(a.multiprocessors);
  if (a.shared_per_block) simt::device().shared_per_block = size_t(a.shared_per_block);
  if (a.largest_cluster) simt::device().largest_cluster = unsigned(a.largest_cluster);
  if (a.code_version) simt::device().code_version = int(a.code_version);
}

}  // namespace

extern "C" {

// Writes a resident tier's plan for a layer of this cell, dtype, N, H and D to `message` as "name value name value
// ..."; "" if the tier cannot run the layer.
int simt_plan(const Arguments* a, int backward, char* message, size_t length) {
  try {
    set_device(*a);
    std::string text;
    for (const cuda::PlanValue& v : cuda::plan_values(kTiers[a->tier], static_cast<Cell>(a->cell),
                                                      static_cast<DType>(a->dtype), a->N, a->H, int(a->D), backward))
      text += std::string(v.name) + ' ' + std::to_string(v.value) + ' ';
    std::snprintf(message, length, "%s", text.c_str());
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(message, length, "%s", e.what());
    return 1;
  }
}

int simt_layer(const Arguments* a, int backward, char* message, size_t length) {
  try {
    simt::seed(uint64_t(a->seed));
    set_device(*a);
    const char* name = "";
    Memory memory;
    const size_t size = size_of(a->dtype);
    Backward b{};
    b.cell = static_cast<Cell>(a->cell);
    b.dtype = static_cast<DType>(a->dtype);
    b.T = a->T, b.N = a->N, b.I = a->I, b.H = a->H, b.P = a->P, b.D = int(a->D);
    const int64_t G = gates_of(b.cell), R = a->rows;
    std::vector<int64_t> active(b.T, b.N), place(b.T);
    std::iota(place.begin(), place.end(), 0);
    if (a->packed) {
      std::copy(a->batch_sizes, a->batch_sizes + b.T, active.begin());
      for (int64_t t = 1; t < b.T; ++t) place[t] = place[t - 1] + active[t - 1];
    }
    b.active = active.data();
    b.place = place.data();
    auto view = [&](void* data, int64_t columns) {
      View v;
      v.data = data;
      v.step = a->packed || a->batch_first ? columns : b.N * columns;
      v.lane = a->packed ? columns : a->batch_first ? b.T * columns : columns;
      return v;
    };
    // The same with `spread` additional elements from one step to the next (batch_first: from one sequence to the
    // next).
    if (a->packed && a->spread) throw simt::Error("packed rows are not spread");
    const int64_t outer = a->batch_first ? b.N : b.T, inner = a->batch_first ? b.T : b.N;
    auto pieces = [&](int64_t columns) -> Pieces {
      if (!a->spread) return Pieces::one(R * columns * int64_t(size));
      return {outer, inner * columns * int64_t(size), (inner * columns + a->spread) * int64_t(size)};
    };
    auto spread_view = [&](void* data, int64_t columns) {
      View v = view(data, columns);
      (a->batch_first ? v.lane : v.step) += a->spread;
      return v;
    };
    b.lengths = static_cast<int64_t*>(memory.in(a->lengths, 8 * b.N, "lengths"));
    b.resets = view(memory.in(a->resets, R, "resets"), 1);
    b.input = view(memory.in(a->input, R * b.I * size, "input"), b.I);
    b.h0 = memory.in(a->h0, b.D * b.N * b.P * size, "h0");
    b.c0 = memory.in(a->c0, b.D * b.N * b.H * size, "c0");
    const char* names[5] = {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};
    const size_t sizes[5] = {size_t(G * b.H * b.I), size_t(G * b.H * b.P), size_t(G * b.H), size_t(G * b.H),
                             size_t(b.P * b.H)};
    for (int d = 0; d < b.D; ++d) {
      const void* w[5];
      for (int i = 0; i < 5; ++i) w[i] = memory.in(a->weights[d][i], sizes[i] * size, names[i]);
      b.weights[d] = {w[0], w[1], w[2], w[3], w[4]};
    }
    const int64_t gates_columns = saved_of(b.cell) * padded(b.H);
    auto take = [&](void* p, Pieces pieces, const char* name) {
      return backward ? memory.in(p, pieces, name) : memory.out(p, pieces, name);
    };
    b.output = spread_view(take(a->output, pieces(b.D * b.P), "output"), b.D * b.P);
    b.cells = spread_view(take(a->cells, pieces(b.D * b.H), "cells"), b.D * b.H);
    b.gates.lane = gates_columns;
    b.gates.step = a->packed ? gates_columns : gates_columns * b.N + a->spread;
    b.gates_direction = a->packed ? R * gates_columns : b.T * b.gates.step;
    const int64_t step_bytes = b.N * gates_columns * int64_t(size);
    const Pieces gates = a->spread ? Pieces{b.D * b.T, step_bytes, b.gates.step * int64_t(size)}
                                   : Pieces::one(b.D * R * gates_columns * int64_t(size));
    b.gates.data = take(a->gates, gates, "gates");
    if (!backward) {
      Forward f{};
      static_cast<Layer&>(f) = b;
      f.h_n = memory.out(a->h_n, b.D * b.N * b.P * size, "h_n");
      f.c_n = memory.out(a->c_n, b.D * b.N * b.H * size, "c_n");
      name = run(a->tier, f);
    } else {
      const int64_t wide = a->grad_output_columns;
      b.grad_output = spread_view(memory.in(a->grad_output, pieces(wide), "grad_output"), wide);
      b.grad_h_n = memory.in(a->grad_h_n, b.D * b.N * b.P * size, "grad_h_n");
      b.grad_c_n = memory.in(a->grad_c_n, b.D * b.N * b.H * size, "grad_c_n");
      b.grad_cells = spread_view(memory.in(a->grad_cells, pieces(b.D * b.H), "grad_cells"), b.D * b.H);
      b.grad_input = view(memory.out(a->grad_input, R * b.I * size, "grad_input"), b.I);
      b.grad_h0 = memory.out(a->grad_h0, b.D * b.N * b.P * size, "grad_h0");
      b.grad_c0 = memory.out(a->grad_c0, b.D * b.N * b.H * size, "grad_c0");
      for (int d = 0; d < b.D; ++d) {
        void* w[5];
        for (int i = 0; i < 5; ++i) w[i] = memory.out(a->grad_weights[d][i], sizes[i] * size, names[i]);
        b.grad_weights[d] = {w[0], w[1], w[2], w[3], w[4]};
        b.want_weights = w[0] != nullptr;
      }
      name = run(a->tier, b);
    }
    memory.finish();
    std::strncpy(message, name, length - 1);
    return 0;
  } catch (const std::exception& e) {
    std::strncpy(message, e.what(), length - 1);
    message[length - 1] = 0;
    return 1;
  }
}

}  // extern "C"
