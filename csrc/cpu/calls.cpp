// Calls at the same time, and calls that run alone. See calls.h.
#include "calls.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>

#include "cpus.h"

namespace lstmkern {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int> calls{0};

constexpr double kMost = 0.01, kFirst = 0.005, kMayWait = 0.25, kForget = 10, kMeasured = 0.04;

// What teams of one kind have saved and lost.
struct Account {
  double pause;                               // in losses
  double balance = kFirst, advance = kFirst;  // seconds; the advance is that of the last try
  Clock::time_point until;                    // when they will be tried again

  bool pauses() {
    if (until == Clock::time_point()) return false;
    if (Clock::now() < until) return true;
    until = {};
    return false;
  }
  void rest(double seconds) {
    until = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  // Returns whether a pause begins.
  bool add(double seconds) {
    balance = std::min(balance + seconds, kMost);
    if (balance >= 0) return false;
    const double loss = advance - balance;
    balance = advance = std::min(loss, kMost);
    rest(pause * loss);
    return true;
  }
};

// For calls of about the same work, on one thread.
struct Accounts {
  Account region{200}, own{20};
  double seconds = 0, work = 0, trust = 0;  // of calls when they last ran alone, and how much that still counts
};
constexpr int kAccounts = 32;
thread_local Accounts accounts[kAccounts];
// Of the call:
thread_local Accounts* used = accounts;
thread_local double used_work = 1;
thread_local bool alone = false;

}  // namespace

Call::Call(double work) {
  used = accounts + std::clamp(std::ilogb(work + 1) / 2, 0, kAccounts - 1);  // for each power of 4
  used_work = work;
  alone = false;
  calls.fetch_add(1, std::memory_order_relaxed);
}

Call::~Call() { calls.fetch_sub(1, std::memory_order_relaxed); }

int Call::threads(int most) const {
  most = std::max(1, std::min(most, cpus().threads / calls_now()));
  alone = most > 1 && used->own.pauses();
  return alone ? 1 : most;
}

Team team_now() { return used->region.pauses() ? Team::own : Team::region; }

bool alone_now() { return alone; }

void team_ended(Team team, int threads, double total, double lost) {
  Accounts& a = *used;
  bool next_are_alone;
  if (team == Team::region) {
    next_are_alone = a.region.add(kMayWait * total - lost);
    if (next_are_alone) a.own.rest(kMeasured);
  } else {
    double one = (total - lost) * threads;
    if (a.trust > 0) one += a.trust * (a.seconds / a.work * used_work - one);
    a.trust *= std::max(0.0, 1 - total / kForget);
    next_are_alone = a.own.add(one - total);
  }
  if (next_are_alone) a.seconds = a.work = a.trust = 0;
}

void alone_ended(double seconds) {
  used->seconds += seconds;
  used->work += used_work;
  used->trust = 1;
}

int calls_now() { return std::max(1, calls.load(std::memory_order_relaxed)); }

void add_calls(int number) { calls.fetch_add(number, std::memory_order_relaxed); }

}  // namespace cpu
}  // namespace lstmkern
