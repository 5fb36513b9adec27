// What all kernels share: types, 16-byte loads and stores, time steps and masks, matrices, launches.
#pragma once

#include "device.h"
#include "tiers.h"

namespace lstmkern {
namespace cuda {

// The cells' arithmetic for scalars. It calls the `sigmoid` and `tanh` of device.h.
#include "../cells.h"

template <class S>
struct ComputeOf {
  using type = float;  // 16-bit types are for storage only
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

template <class S>
constexpr DType dtype_of() {
  return std::is_same_v<S, float>    ? DType::f32
         : std::is_same_v<S, double> ? DType::f64
         : std::is_same_v<S, bf16>   ? DType::bf16
                                     : DType::f16;
}

// gates_of() for device code.
template <Cell CELL>
constexpr int kGates = gates_of(CELL);

// Values of type S in 16 bytes: what a thread of a pointwise kernel handles.
template <class S>
constexpr int kPer16 = 16 / static_cast<int>(sizeof(S));
constexpr int kThreads = 128;

// --- values ---

// Loads the first n of V consecutive values; the others are 0. Loads 16 bytes at once if the address is aligned.
template <int V, class S, class C>
LSTMKERN_DEVICE void load(C (&to)[V], const S* from, int n) {
  constexpr int per = kPer16<S>;
  if (n >= V && V % per == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < V / per; ++i) {
      const Bytes16 piece = load16(from + i * per);
      S values[per];
      memcpy(values, &piece, 16);
#pragma unroll
      for (int k = 0; k < per; ++k)
        to[(i * per + k) % V] = widen(values[k]);  // % V: keeps the branch valid where it never runs
    }
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k) to[k] = k < n ? static_cast<C>(widen(from[k])) : C(0);
  }
}

template <int V, class S, class C>
LSTMKERN_DEVICE void store(S* to, const C (&from)[V], int n) {
  constexpr int per = kPer16<S>;
  if (n >= V && V % per == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < V / per; ++i) {
      S values[per];
#pragma unroll
      for (int k = 0; k < per; ++k) narrow(from[(i * per + k) % V], values[k]);
      Bytes16 piece;
      memcpy(&piece, values, 16);
      store16(to + i * per, piece);
    }
  } else {
#pragma unroll
    for (int k = 0; k < V; ++k)
      if (k < n) narrow(from[k], to[k]);
  }
}

template <int V, class S, class C>
LSTMKERN_DEVICE void add(C (&to)[V], const S* from, int n) {
  C more[V];
  load(more, from, n);
#pragma unroll
  for (int k = 0; k < V; ++k) to[k] += more[k];
}

template <int V, class C>
LSTMKERN_DEVICE void clear_if(bool condition, C (&values)[V]) {
#pragma unroll
  for (int k = 0; k < V; ++k) values[k] = condition ? C(0) : values[k];
}

// A View with a type: rows of a tensor by place and sequence. `data` is null for an absent tensor.
template <class S>
struct Rows {
  S* data;
  int64_t step, lane;
  LSTMKERN_DEVICE S* at(int64_t place, int64_t j) const { return data + place * step + j * lane; }
};

template <class S>
Rows<S> rows_of(const View& view, int64_t column = 0) {
  return {view.data ? static_cast<S*>(view.data) + column : nullptr, view.step, view.lane};
}

template <class S>
S* offset(void* data, int64_t by) {
  return data ? static_cast<S*>(data) + by : nullptr;
}
template <class S>
const S* offset(const void* data, int64_t by) {
  return data ? static_cast<const S*>(data) + by : nullptr;
}

// --- steps ---

struct Moment {
  int64_t t, place, active;  // active: 0 before the first and after the last step
};

// A step, the one before it and the one after it, in the order in which the direction runs.
struct Step {
  Moment before, now, after;
};

// Which steps belong to a sequence, and which of them start from a zero state.
struct Mask {
  const int64_t* lengths;
  Rows<const bool> resets;
  // Whether sequence j takes this step; otherwise the step is padding or not in the batch.
  LSTMKERN_DEVICE bool takes(const Moment& m, int64_t j) const {
    return j < m.active && (lengths == nullptr || m.t < lengths[j]);
  }
  // Whether sequence j has no steps. Its state and the gradient of its state then pass through unchanged.
  LSTMKERN_DEVICE bool empty(int64_t j) const { return lengths != nullptr && lengths[j] <= 0; }
  // Whether sequence j takes this step from a zero state.
  LSTMKERN_DEVICE bool is_reset(const Moment& m, int64_t j) const {
    return resets.data != nullptr && takes(m, j) && *resets.at(m.place, j);
  }
};

inline Mask mask_of(const Layer& layer) { return {layer.lengths, rows_of<const bool>(layer.resets)}; }

inline Moment moment(const Layer& layer, int d, int64_t s) {
  if (s < 0 || s >= layer.T) return {-1, 0, 0};
  const int64_t t = d ? layer.T - 1 - s : s;
  return {t, layer.place[t], layer.active[t]};
}

inline Step step_of(const Layer& layer, int d, int64_t s) {
  return {moment(layer, d, s - 1), moment(layer, d, s), moment(layer, d, s + 1)};
}

inline int64_t rows_of_steps(const Layer& layer) {
  int64_t rows = 0;
  for (int64_t t = 0; t < layer.T; ++t) rows += layer.active[t];
  return rows;
}

// Numbers all (step, sequence) pairs as the rows of one matrix, in the order in which the input has them in memory.
struct Numbering {
  int64_t count, step, lane;  // row of (place, j): place * step + j * lane
  explicit Numbering(const Layer& layer) : count(rows_of_steps(layer)) {
    const int64_t columns = layer.input.step < layer.input.lane ? layer.input.step : layer.input.lane;
    step = layer.input.step / columns;
    lane = layer.input.lane / columns;
  }
  template <class S>
  Rows<S> rows(S* data, int64_t columns) const {
    return {data, step * columns, lane * columns};
  }
  // The rows of one step, [active, columns], of a matrix whose rows are `stride` elements apart in memory.
  template <class S>
  Matrix of(S* data, const Moment& m, int64_t columns, int64_t stride) const {
    return {data + m.place * step * stride, dtype_of<S>(), m.active, columns, lane * stride, false};
  }
};

template <class S>
Matrix matrix(const S* data, int64_t rows, int64_t columns, int64_t stride) {
  return {const_cast<S*>(data), dtype_of<S>(), rows, columns, stride, false};
}

// --- work for a grid ---

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// A launch with a thread for every V columns of rows x columns values.
inline Launch cover(int64_t rows, int64_t columns, int V, void* stream) {
  const int64_t groups = (columns + V - 1) / V;
  unsigned threads_x = 1;
  while (threads_x < groups && threads_x < kThreads) threads_x *= 2;
  const unsigned threads_y = kThreads / threads_x;
  const int64_t blocks_y = (rows + threads_y - 1) / threads_y;
  Launch config;
  config.block = {threads_x, threads_y, 1};
  config.grid.x = static_cast<unsigned>((groups + threads_x - 1) / threads_x);
  config.grid.y = static_cast<unsigned>(blocks_y < kMaxGridY ? blocks_y : kMaxGridY);
  config.stream = stream;
  return config;
}

// Calls f(row, column, n) for every piece of rows x columns values: n columns (at most V) from `column` on. For kernels
// that are launched with cover().
template <int V, class F>
LSTMKERN_DEVICE void for_pieces(int64_t rows, int64_t columns, const F& f) {
  const Index block = block_index(), thread = thread_index(), size = block_size();
  const int64_t column = (static_cast<int64_t>(block.x) * size.x + thread.x) * V;
  if (column >= columns) return;
  const int n = columns - column < V ? static_cast<int>(columns - column) : V;
  const int64_t stride = static_cast<int64_t>(grid_size().y) * size.y;
  for (int64_t row = static_cast<int64_t>(block.y) * size.y + thread.y; row < rows; row += stride) f(row, column, n);
}

// Divides a workspace into arrays. It runs twice: with a null base to learn the size, then with the real one.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* allocate(int64_t count) {
    const size_t at = used_;
    used_ += (sizeof(T) * static_cast<size_t>(count > 0 ? count : 0) + 255) / 256 * 256;
    return count > 0 ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The types that are compiled: 1 is only fp32, 2 is fp32 and bf16. The mutation tests, which compile many copies, set
// it.
#if !defined(LSTMKERN_TYPES)
#define LSTMKERN_TYPES 4
#endif

// Calls f(S{}) for the storage type S that `dtype` names.
template <class F>
auto for_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
#if LSTMKERN_TYPES > 1
    case DType::bf16: return f(bf16{});
#endif
#if LSTMKERN_TYPES > 2
    case DType::f16: return f(f16{});
    case DType::f64: return f(double{});
#endif
    default: break;
  }
  return decltype(f(float{}))();
}

// Calls f.template run<CELL, S>() for the layer's cell and storage type.
template <class F>
void for_kind(const Layer& layer, F&& f) {
  for_dtype(layer.dtype, [&](auto tag) {
    using S = decltype(tag);
    switch (layer.cell) {
      case Cell::rnn_tanh: return f.template run<Cell::rnn_tanh, S>();
      case Cell::rnn_relu: return f.template run<Cell::rnn_relu, S>();
      case Cell::lstm: return f.template run<Cell::lstm, S>();
      case Cell::gru: return f.template run<Cell::gru, S>();
    }
  });
}

// A Loop<CELL, S>(layer, memory) allocates its arrays in its constructor; loop.run(d, call) runs direction d.
template <template <Cell, class> class Loop, class L>
struct Measuring {
  const L& layer;
  size_t bytes = 0;
  template <Cell CELL, class S>
  void run() {
    Workspace memory(nullptr);
    Loop<CELL, S> loop(layer, memory);
    bytes = memory.used();
  }
};

template <template <Cell, class> class Loop, class L>
struct Running {
  const L& layer;
  const Call& call;
  template <Cell CELL, class S>
  void run() {
    Workspace memory(call.workspace);
    Loop<CELL, S> loop(layer, memory);
    for (int d = 0; d < layer.D; ++d) loop.run(d, call);
  }
};

// The functions of a tier whose time loop is such a Loop.
template <template <Cell, class> class Loop, class L>
constexpr TierPass<L> loop_pass() {
  return {[](const L& layer) {
            Measuring<Loop, L> measuring{layer};
            for_kind(layer, measuring);
            return measuring.bytes;
          },
          [](const L& layer, const Call& call) { for_kind(layer, Running<Loop, L>{layer, call}); }, nullptr};
}

}  // namespace cuda
}  // namespace lstmkern
