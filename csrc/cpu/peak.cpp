// Runs the loops of peak.inl on a team, against the clock.
#include "peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>

#include "team.h"
#include "variant.h"

namespace lstmkern {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;

struct Race {
  const Rate* rate;
  int64_t bytes;
  double seconds;
  Barrier start;
  std::unique_ptr<double[]> speed;  // of each thread
  int size = 1;
};

void run(void* arg, int rank, int size) {
  Race& race = *static_cast<Race*>(arg);
  if (rank == 0) race.size = size;
  const int64_t bytes = std::max<int64_t>(race.bytes / size / 4096 * 4096, 4096);
  std::unique_ptr<char[]> memory(new char[bytes + 64]);  // touched by the thread that will read it
  char* aligned = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
  std::fill_n(reinterpret_cast<float*>(aligned), bytes / 4, 1.0f);
  // So many rounds that the clock is read about every 50 microseconds.
  int64_t rounds = 1;
  auto timed = [&](double& work) {
    const auto begin = Clock::now();
    work = race.rate->run(rounds, aligned, bytes);
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  for (double work; timed(work) < 50e-6;) rounds *= 2;
  race.start.wait(size);
  double work = 0, elapsed = 0, part = 0;
  while (elapsed < race.seconds) {
    elapsed += timed(part);
    work += part;
  }
  race.speed[rank] = work / elapsed;
}

}  // namespace

double peak(const std::string& capability, const std::string& rate, int threads, int64_t bytes, double seconds) {
  threads = std::max(threads, 1);
  for (const Rate* r = rates(capability.c_str()); r->name; ++r) {
    if (rate != r->name || !r->supported()) continue;
    Race race{r, bytes, seconds, {}, std::unique_ptr<double[]>(new double[threads]()), 1};
    run_team(threads, run, &race);
    double sum = 0;
    for (int i = 0; i < race.size; ++i) sum += race.speed[i];
    return sum;
  }
  return 0;
}

}  // namespace cpu
}  // namespace lstmkern
