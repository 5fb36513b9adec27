// How many threads a pass over a layer should use, and how they divide it: estimated from the sizes of the layer.
//
// A thread gains what it computes between two barriers and costs its waking, its part of every barrier, and what it
// reads from the caches of other cores. The time of a pass is estimated for every number of threads and for both ways
// to divide it (Share in common.inl) from the operations that its slowest thread executes, each at a measured cost
// (cost.cpp). Estimates are within 20 % of the time on the machine where the costs were measured; what matters is how
// the estimates for two numbers of threads compare, which depends less on the machine.
#pragma once

#include <cstdint>
#include <utility>

#include "../layer.h"

namespace lstmkern {
namespace cpu {

// Reading the weights from main memory takes about as long as the GEMM of this many rows.
constexpr int64_t kReading = 3;

// What a step reads of the weights stays in the L2 cache up to this many bytes.
constexpr int64_t cached_bytes(bool tiles) { return tiles ? 7 << 18 : 5 << 19; }

// A pass over one direction of a layer, as far as its time depends on it.
struct Work {
  Cell cell;
  bool backward;
  int64_t T, N, rows, I, H, P;            // rows: of all steps, fewer than T * N if sequences have different lengths
  bool project;                           // P is a projection of H
  bool saves;                             // forward: values for backward
  bool input_gradient, weight_gradients;  // backward
  bool direct;                            // weights are read in place, not packed (direct.h)
  bool once;                              // one GEMM takes the weights (forward: W_ih, backward: W_hh)
  int64_t bytes, panels;                  // of the packed weights that every step reads
  int lanes;                              // values of a register of sums
  int registers;                          // of sums in a tile
  int per_word;                           // values along k that one instruction multiplies
  bool tiles;                             // in tile registers (AMX)
  bool asleep;                            // the other threads of the team sleep

  // Whether a step of `rows` rows, in a group of `members` threads, computes x W_ih^T and h W_hh^T in one GEMM. Then
  // x W_ih^T does not pass through the cache (the sums are the same, bit for bit), but W_ih is read at every step. That
  // needs enough rows, and more of them if the L2 cache does not hold W_ih (measured: docs/benchmarks/findings.md).
  bool joint(int64_t step_rows, int members) const {
    if (direct || once) return T == 1;
    const int64_t high = (step_rows + 31) / 32;
    // Tiles with less than three quarters of their rows in use load too much for what they compute.
    if (tiles && 4 * step_rows < 3 * high * (step_rows <= 16 * high ? 16 : 32)) return false;
    const double mib = double(bytes) / members / (1 << 20);
    return step_rows >= (mib < 1.75 ? 5 : tiles ? 48 : mib < 12 ? 10 + 1.5 * mib : 28);
  }
};

// What forward or backward of `layer` is with the instruction set in use. Tensors are not read, only whether they are
// there.
Work work_of(const Backward& layer, bool backward);

// The estimated nanoseconds of the pass on `threads` threads that divide the rows of the batch or the hidden units.
double nanoseconds(const Work& work, int threads, bool by_rows);

// Whether a team of `size` threads divides the rows of the batch rather than the hidden units.
bool divides_rows(const Work& work, int size);

// The same for a GEMM whose weights exceed the L2 cache, where both divisions were measured (findings.md). If rows are
// divided, every thread reads all weights at every step, which takes as long as the GEMM of 3 rows (AMX: 16). If
// units are divided, each thread reads only its part. But whole panels cannot always be divided equally, and each step
// costs `exchange`, a fraction of the GEMM's time, for a barrier and for reading what the other threads computed.
bool large_weights_divide_rows(int64_t rows, int size, int64_t panels, bool tiles, double exchange);

// The number of threads for the pass, at most `most`: the best by the estimate, where twice as many threads must be at
// least an eighth faster, because a wrong choice of more threads costs more than one of fewer.
int choose_threads(const Work& work, int most);

// The same for a call. If this thread's last pass ended more than some milliseconds ago, the team has gone to sleep,
// and waking it costs much more. Calls that follow each other keep it awake.
int threads_of_call(const Work& work, int most);
void end_of_call(int most);

// For tests and benchmarks: every layer uses exactly `threads` threads, and this division. 0 and `chosen`: as
// estimated.
// Returns the setting before.
enum class Division : int { chosen, rows, units };
std::pair<int, Division> fix_threads(int threads, Division division);

}  // namespace cpu
}  // namespace lstmkern
