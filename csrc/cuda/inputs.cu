// The input product, the biases and the tables of steps (inputs.h).
#include "inputs.h"

namespace lstmkern {
namespace cuda {
namespace {

// [planes, H]
template <Cell CELL, class S>
LSTMKERN_KERNEL(kThreads)
sum_biases(Compute<S>* sums, const S* b_ih, const S* b_hh, int64_t H) {
  using C = Compute<S>;
  constexpr int planes = CELL == Cell::gru ? 4 : kGates<CELL>;
  for_pieces<1>(planes, H, [&](int64_t plane, int64_t unit, int) {
    const bool hidden_only = CELL == Cell::gru && plane == 3, input_only = CELL == Cell::gru && plane == 2;
    const int64_t at = (hidden_only ? 2 : plane) * H + unit;
    C sum = 0;
    if (b_ih && !hidden_only) sum += widen(b_ih[at]);
    if (b_hh && !input_only) sum += widen(b_hh[at]);
    sums[plane * H + unit] = sum;
  });
}

constexpr int kChunk = 256;  // 2 KiB of arguments

struct Numbers {
  int64_t value[kChunk];
};

LSTMKERN_KERNEL(kChunk) write_numbers(int64_t* to, Numbers numbers, int count) {
  const int i = static_cast<int>(thread_rank());
  if (i < count) to[i] = numbers.value[i];
}

void upload(int64_t* to, const int64_t* from, int64_t count, void* stream) {
  Launch config;
  config.block = {kChunk, 1, 1};
  config.stream = stream;
  for (int64_t at = 0; at < count; at += kChunk) {
    const int n = static_cast<int>(count - at < kChunk ? count - at : kChunk);
    Numbers numbers = {};
    for (int i = 0; i < n; ++i) numbers.value[i] = from[at + i];
    launch("write_numbers", write_numbers, config, to + at, numbers, n);
  }
}

bool dense(const Layer& layer) {
  for (int64_t t = 0; t < layer.T; ++t)
    if (layer.active[t] != layer.N || layer.place[t] != t) return false;
  return true;
}

struct RunInputs {
  const Forward& layer;
  int d;
  void *x_gates, *bias;
  const Call& call;
  template <Cell CELL, class S>
  void run() {
    using C = Compute<S>;
    const Weights& w = layer.weights[d];
    const int64_t rows = rows_of_steps(layer), H = layer.H, I = layer.I, columns = kGates<CELL> * H;
    const S *b_ih = static_cast<const S*>(w.b_ih), *b_hh = static_cast<const S*>(w.b_hh);
    launch("sum_biases", sum_biases<CELL, S>, cover(4, H, 1, call.stream), static_cast<C*>(bias), b_ih, b_hh, H);
    call.products->multiply(matrix(static_cast<const C*>(x_gates), rows, columns, columns),
                            matrix(static_cast<const S*>(layer.input.data), rows, I, I),
                            transpose(matrix(static_cast<const S*>(w.w_ih), columns, I, I)), false);
  }
};

}  // namespace

void input_products(const Forward& layer, int d, void* x_gates, void* bias, const Call& call) {
  for_kind(layer, RunInputs{layer, d, x_gates, bias, call});
}

Tables::Tables(const Layer& layer, Workspace& memory) : layer_(layer) {
  if (dense(layer)) return;
  active_ = memory.allocate<int64_t>(layer.T);
  place_ = memory.allocate<int64_t>(layer.T);
}

Times Tables::fill(void* stream) const {
  if (dense(layer_)) return {layer_.T, layer_.N, nullptr, nullptr};
  upload(active_, layer_.active, layer_.T, stream);
  upload(place_, layer_.place, layer_.T, stream);
  return {layer_.T, layer_.N, active_, place_};
}

}  // namespace cuda
}  // namespace lstmkern
