// What precedes the time loop in every tier: the input product for all steps, the biases, and, for kernels that run the
// loop themselves, the tables of steps.
#pragma once

#include "steps.h"

namespace lstmkern {
namespace cuda {

// Computes x_gates [rows, G, H] = x W_ih^T for all rows, and bias [4, H], which the cell adds: b_ih + b_hh per gate.
// For a GRU: b_ih + b_hh of r and z, then n of b_ih and n of b_hh separately. Both results have the compute type.
void input_products(const Forward& layer, int d, void* x_gates, void* bias, const Call& call);

// moment() for kernels. The tables are on the device; they are null if every step has all sequences.
struct Times {
  int64_t T, N;
  const int64_t *active, *place;
  LSTMKERN_DEVICE Moment at(int d, int64_t s) const {
    if (s < 0 || s >= T) return {-1, 0, 0};
    const int64_t t = d ? T - 1 - s : s;
    return {t, place ? place[t] : t, active ? active[t] : N};
  }
};

// Copies Layer::active and place to the device, for Times. The values are passed as kernel arguments: this needs no
// pinned memory and no synchronization, and a CUDA graph records them. Dense layers need no tables.
class Tables {
 public:
  Tables(const Layer& layer, Workspace& memory);
  Times fill(void* stream) const;

 private:
  const Layer& layer_;
  int64_t *active_ = nullptr, *place_ = nullptr;
};

}  // namespace cuda
}  // namespace lstmkern
