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

constexpr double kMost = 0.01, kFirst = 0.005, kAlone = 20;

// What teams for calls of about the same work have saved and lost, on one thread.
struct Account {
  double balance = kFirst, advance = kFirst;  // seconds; the advance is that of the last try
  Clock::time_point alone_until;
};
constexpr int kAccounts = 32;
thread_local Account accounts[kAccounts];
thread_local Account* account = accounts;  // that of the call

}  // namespace

Call::Call(double work) {
  account = accounts + std::clamp(std::ilogb(work + 1) / 2, 0, kAccounts - 1);  // for each power of 4
  calls.fetch_add(1, std::memory_order_relaxed);
}

Call::~Call() { calls.fetch_sub(1, std::memory_order_relaxed); }

int Call::threads(int most) const {
  most = std::max(1, std::min(most, cpus().threads / calls_now()));
  if (most == 1 || account->alone_until == Clock::time_point()) return most;
  if (Clock::now() < account->alone_until) return 1;
  account->alone_until = {};
  return most;
}

void team_ended(int threads, double total, double lost) {
  // One thread would have taken `threads` times as long as the caller did without waiting.
  account->balance = std::min(account->balance + (total - lost) * threads - total, kMost);
  if (account->balance >= 0) return;
  const double loss = account->advance - account->balance;
  account->balance = account->advance = std::min(loss, kMost);
  account->alone_until =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kAlone * loss));
}

int calls_now() { return std::max(1, calls.load(std::memory_order_relaxed)); }

void add_calls(int number) { calls.fetch_add(number, std::memory_order_relaxed); }

}  // namespace cpu
}  // namespace lstmkern
