// What precedes the time loop, whichever tier runs it: the input product for all steps, the biases, and for kernels
// that run the loop themselves the tables of steps.
#pragma once

#include "steps.h"

namespace lstmkern {
namespace cuda {

// x_gates [rows, G, H] = x W_ih^T for all rows, and bias [4, H], what the cell adds: b_ih + b_hh, for a GRU r and z so,
// then n of b_ih and n of b_hh each alone. Both in the compute type.
void input_products(const Forward& layer, int d, void* x_gates, void* bias, const Call& call);

// moment() for kernels: the tables lie on the device, or are absent where every step has all sequences.
struct Times {
  int64_t T, N;
  const int64_t *active, *place;
  LSTMKERN_DEVICE Moment at(int d, int64_t s) const {
    if (s < 0 || s >= T) return {-1, 0, 0};
    const int64_t t = d ? T - 1 - s : s;
    return {t, place ? place[t] : t, active ? active[t] : N};
  }
};

// Layer::active and place for Times. They travel as kernel arguments: no copy from memory that would have to be pinned,
// nothing to wait for, and a graph keeps them. Dense layers need none.
class Tables {
 public:
  Tables(const Layer& layer, Carver& memory);
  Times fill(void* stream) const;

 private:
  const Layer& layer_;
  int64_t *active_ = nullptr, *place_ = nullptr;
};

}  // namespace cuda
}  // namespace lstmkern
