// The estimate of cost.h. A function per pass adds up what its slowest thread does.
#include "cost.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>

namespace lstmkern {
namespace cpu {
namespace {

// Nanoseconds on a core with registers of 64 bytes, fitted to the times of 5,000 forward and backward passes in fp32
// with 1 and 2 threads and both divisions: an AMD EPYC (Zen 4) with AVX-512, 2 cores of a virtual machine. The median
// error of an estimate is 8 % with one thread and 12 % with two; with AVX2 and in fp64, which were not part of the fit,
// 10 and 15 %. benchmarks/thread_choice.py measures again what a team costs and how good the choices are.
constexpr double kForward = 4000, kBackward = 1400;  // a call, in forward with Python and the checks of its arguments
constexpr double kStep = 17, kBackwardStep = 22, kChunk = 4500;  // a chunk of backward
// A register of the panel that a tile multiplies, for each k; a register of sums; a value of a row.
constexpr double kLoad = 0.27, kMultiply = 0.23, kBroadcast = 0.05;
constexpr double kTile = 40;        // a tile of sums, without its multiplications
constexpr double kTiled = 0.2;      // AMX multiplies in this part of the time (from a tile product's 8 ns, findings.md)
constexpr double kPack = 1.5;       // a register of weights
constexpr double kPackRows = 0.75;  // the same in backward, where rows of the weights are rows of panels
constexpr double kCopy = 1.3;       // a register of inputs
constexpr double kInputs = 2.4;     // a register of x W_ih^T that passes through the cache
constexpr double kRow = 10;         // a row of a panel of them
constexpr double kDirect = 0.6;     // a register of weights that is read in place
constexpr double kSumLanes = 8.4;   // adding up the lanes of a register
constexpr double kSave = 2.4;       // a register of gates that is stored for backward
constexpr double kTransposed = 0.31;  // kMultiply of the weight gradients
constexpr double kGradientTile = 30;  // a tile of them
constexpr double kGradient = 1.0;     // a register of them that is stored
constexpr double kOperand = 6.6;      // a register of their right operand that is packed
constexpr double kColumns = 0.74;     // a row of their left operand, for each tile
// By Cell, a register of units of one row.
constexpr double kForwardCell[] = {8, 4, 26, 19}, kBackwardCell[] = {1, 1, 32, 22};

// What threads cost. The first number is that of the second thread: waking it, waiting for it, and its cold caches. The
// other is that of each further thread. It is an assumption, as that machine has two cores: threads on cores that share
// a cache.
constexpr double kWake = 2200, kWakeMore = 150;
constexpr double kWakeAsleep = 60000, kWakeAsleepMore = 2000;  // 110 us in a virtual machine, 10 to 50 on hardware
constexpr double kBarrier = 60, kBarrierMore = 40;
constexpr double kLine = 7.5;       // a cache line that another core has written
constexpr double kStateLine = 24;   // the same just after a barrier, where nothing else can be done meanwhile
constexpr double kSpinning = 4e-3;  // seconds for which OpenMP's threads stay awake after their work (GNU's: 5 ms)

// Twice as many threads must be estimated to be faster by this part: of 0.05 to 0.4 the best for 314 forward passes in
// four dtypes (benchmarks/results/thread_choice.json).
constexpr double kWorth = 0.15;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

double waking(const Work& w, int threads) {
  if (threads == 1) return 0;
  return w.asleep ? kWakeAsleep + kWakeAsleepMore * (threads - 2) : kWake + kWakeMore * (threads - 2);
}
double barrier(int threads) { return threads == 1 ? 0 : kBarrier + kBarrierMore * (threads - 2); }

// The time of an instruction on narrower registers: a core issues about twice as many of half the width.
double narrow(const Work& w) { return w.registers == 24 ? 1 : 0.55; }

// Estimated nanoseconds, apart those that depend on the width of registers.
struct Time {
  double fixed, by_width = 0;
};

// What reading weights that exceed the L2 cache adds to a GEMM, as rows of it (findings.md).
double rows_of_reading(const Work& w) { return w.bytes <= cached_bytes(w.tiles) ? 0 : w.tiles ? 16 : kReading; }

// What a thread multiplies: `rows` rows with `panels` panels of `registers` registers in all.
struct Gemm {
  const Work& work;
  int64_t rows, panels, registers, most;  // most: rows of a tile
  double reading = 0;                     // as rows
  // Adds `times` GEMMs of depth K.
  void add(Time& time, double times, int64_t K) const {
    const int64_t tiles = ceil_div(rows, work.tiles ? 32 : most);
    const double words = double(K) / work.per_word * (work.tiles ? kTiled : 1);
    const double each = registers * (kMultiply * (rows + reading) + kLoad * tiles) + kBroadcast * rows * panels;
    time.by_width += times * (words * each + kTile * tiles * panels);
  }
};

Time forward_time(const Work& w, int threads, bool by_rows) {
  const int G = gates_of(w.cell), members = by_rows ? 1 : threads;
  const double others = double(threads - 1) / threads, T = double(w.T);
  const int64_t active = ceil_div(w.rows, w.T), units = ceil_div(w.H, w.lanes), registers = units * G;
  const int64_t inputs = ceil_div(w.I, w.lanes), K = w.I + w.P;
  // Of a thread: rows of a step, of all steps; panels, their registers, and how many of these a panel has at most.
  const int64_t rows = by_rows ? ceil_div(active, threads) : active, all = w.T * rows;
  const int64_t panels = ceil_div(w.panels, members), mine = ceil_div(registers * panels, w.panels);
  const int64_t wide = ceil_div(registers, w.panels), most = std::min<int64_t>(w.registers / wide, 12);
  const bool joint = w.joint(rows, members), shares_panels = by_rows && !w.once;
  Time time{kForward + waking(w, threads) + kStep * T};
  if (w.direct) {
    const int64_t at_once = w.registers / 4;
    time.by_width += mine * kDirect * (w.T * w.P * ceil_div(rows, at_once) + w.I * ceil_div(all, at_once));
    time.by_width += mine * all * (kMultiply * K + 2 * kSumLanes);
  } else {
    Gemm{w, rows, panels, mine, most, rows_of_reading(w)}.add(time, T, joint ? K : w.P);
    if (!joint) Gemm{w, all, panels, mine, most}.add(time, 1, w.I);
    const double packed = shares_panels || !by_rows ? registers * ceil_div(w.panels, threads) / w.panels : registers;
    time.by_width += (kPack * packed + (shares_panels ? kLine * others * registers : 0)) * K / w.per_word;
  }
  if (joint)
    time.by_width += T * inputs * (kCopy * ceil_div(rows, members) + (members > 1 ? kLine * others * active : 0));
  else
    time.by_width += kInputs * all * mine, time.fixed += kRow * all * panels;
  time.by_width += all * mine * (kForwardCell[int(w.cell)] / G + (w.saves ? kSave : 0));
  if (members > 1) time.fixed += T * barrier(threads), time.by_width += T * kStateLine * others * active * units;
  if (w.project) {
    const int64_t vectors = ceil_div(w.P, w.lanes), projected = ceil_div(vectors, w.registers / 6);
    const int64_t share = ceil_div(projected, members);
    Gemm{w, rows, share, ceil_div(vectors * share, projected), 6}.add(time, T, w.H);
    if (members > 1) time.fixed += T * barrier(threads), time.by_width += T * kStateLine * others * active * vectors;
  }
  return time;
}

Time backward_time(const Work& w, int threads, bool by_rows) {
  const int G = gates_of(w.cell), members = by_rows ? 1 : threads, columns = w.registers / 6;
  const double others = double(threads - 1) / threads, T = double(w.T);
  const int64_t active = ceil_div(w.rows, w.T), units = ceil_div(w.H, w.lanes), inputs = ceil_div(w.I, w.lanes);
  const int64_t states = ceil_div(w.P, w.lanes), K = G * units * w.lanes;
  // Of a thread, as in forward. `shared`: of all rows, where every thread has an equal part of them.
  const int64_t rows = by_rows ? ceil_div(active, threads) : active, all = w.T * rows;
  const int64_t panels = ceil_div(w.panels, members), mine = ceil_div(states * panels, w.panels);
  const int64_t most = w.direct ? w.registers / 4 : std::min<int64_t>(w.registers / ceil_div(states, w.panels), 12);
  const int64_t shared = ceil_div(w.rows, threads), chunks = ceil_div(w.rows, 384 + w.N);
  Time time{kBackward + waking(w, threads) + kBackwardStep * T + chunks * (kChunk + 2 * barrier(threads))};
  Gemm{w, rows, panels, mine, most, rows_of_reading(w)}.add(time, T, K);
  time.by_width += all * kBackwardCell[int(w.cell)] * ceil_div(units * panels, w.panels);
  if (members > 1) time.fixed += T * barrier(threads), time.by_width += kLine * others * shared * G * units;
  if (w.project) {
    const int64_t hidden = ceil_div(units, columns), share = ceil_div(hidden, members);
    Gemm{w, rows, share, ceil_div(units * share, hidden), 6}.add(time, T, w.P);
    if (members > 1) time.fixed += T * barrier(threads), time.by_width += T * kStateLine * others * active * units;
  }
  if (!w.direct) {  // packing; panels of weights that are used once are packed by the thread that uses them
    double lines = w.once ? 0 : mine;
    if (w.input_gradient && chunks > 1) lines += inputs;
    time.by_width += (kPackRows * ceil_div(K, threads) * (states + inputs) + kLine * others * K * lines) / w.per_word;
  }
  if (w.input_gradient) Gemm{w, shared, ceil_div(inputs, columns), inputs, 6}.add(time, 1, K);
  if (w.weight_gradients) {
    const int64_t height = w.tiles ? 16 : w.registers / 3, both = inputs + states;
    const int64_t tiles = ceil_div(G * ceil_div(w.H, height), threads);
    const double words = double(w.rows) / w.per_word;
    time.by_width += (w.tiles ? kTiled : 1) * kTransposed * tiles * height * both * words;
    time.by_width += double(chunks) * tiles * (kGradientTile * ceil_div(both, 3) + kGradient * height * both);
    time.by_width += kColumns * tiles * words + kOperand * shared * both;
    time.by_width += kLine * others * (both + double(G * units) / threads) * words;
  }
  return time;
}

thread_local double last_call = -1;  // when a layer's last pass on this thread ended
double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Whether OpenMP's threads sleep as soon as they have nothing to do.
bool sleep_at_once() {
  static const bool passive = [] {
    const char* policy = std::getenv("OMP_WAIT_POLICY");
    return policy && (policy[0] == 'p' || policy[0] == 'P');
  }();
  return passive;
}

std::atomic<int> fixed_threads{0};
std::atomic<Division> fixed_division{Division::chosen};

}  // namespace

double nanoseconds(const Work& w, int threads, bool by_rows) {
  const Time time = w.backward ? backward_time(w, threads, by_rows) : forward_time(w, threads, by_rows);
  return time.fixed + narrow(w) * time.by_width;
}

bool large_weights_divide_rows(int64_t rows, int size, int64_t panels, bool tiles, double exchange) {
  if (rows < 8 * size) return false;
  const int64_t most = ceil_div(panels, size);  // panels of a thread
  const double mine = double(rows) / size, reading = tiles ? 16 : kReading, busy = double(panels) / (most * size);
  return mine + reading <= (1 + exchange) * (mine + reading / size) / busy;
}

bool divides_rows(const Work& w, int size) {
  const Division fixed = fixed_division.load(std::memory_order_relaxed);
  if (fixed != Division::chosen || size == 1) return fixed == Division::rows || size == 1;
  if (w.bytes > cached_bytes(w.tiles)) {
    const double exchange = w.backward ? (w.tiles ? 0.25 : 0.12) : (w.tiles ? 0.36 : 0.14) / gates_of(w.cell);
    return !w.once && large_weights_divide_rows(w.N, size, w.panels, w.tiles, exchange);
  }
  if (w.panels == 1) return true;
  return nanoseconds(w, size, true) <= nanoseconds(w, size, false);
}

int choose_threads(const Work& w, int most) {
  if (const int fixed = fixed_threads.load(std::memory_order_relaxed)) return fixed;
  if (most <= 1) return 1;
  const double call = w.backward ? kBackward : kForward, alone = nanoseconds(w, 1, true);
  int best = 1;
  double least = alone;
  // Every number up to 16, then steps of an eighth (18, 20, .. 32, 36, .. 64, 72).
  for (int n = 2, step = 1; n <= most; n = n == most ? n + 1 : std::min(most, n + step)) {
    // Stops if even an ideal division of the rest could not make up for waking more threads.
    if (call + waking(w, n) + (alone - call) / most >= least) break;
    const double time = nanoseconds(w, n, divides_rows(w, n)) * (1 + kWorth * std::log2(n));
    if (time < least) least = time, best = n;
    if (time > 1.5 * least) break;
    if (n == 16 * step) step *= 2;
  }
  return best;
}

int threads_of_call(const Work& w, int most) {
  const int threads = choose_threads(w, most);
  if (threads == 1 || (!sleep_at_once() && seconds_now() - last_call < kSpinning)) return threads;
  Work asleep = w;
  asleep.asleep = true;
  return choose_threads(asleep, most);
}

void end_of_call(int most) {
  if (most > 1) last_call = seconds_now();
}

std::pair<int, Division> fix_threads(int threads, Division division) {
  return {fixed_threads.exchange(threads), fixed_division.exchange(division)};
}

}  // namespace cpu
}  // namespace lstmkern
