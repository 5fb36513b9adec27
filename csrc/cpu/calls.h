// How many threads a call may use now, given the other calls at the same time and what teams lost before.
#pragma once

namespace lstmkern {
namespace cpu {

// The threads of a team: those of a parallel region, which torch uses too, or our own (pool.h).
enum class Team : int { region, own };

// A call of a layer while it runs. Calls in several threads at once share the CPUs: each gets an equal part.
//
// A team is slow where its members do not run: other processes keep the CPUs busy, or the members were asleep and a
// short call ends before they wake. So a team tells how long its caller waited (team_ended), and there are two accounts
// for calls of about the same work on this thread.
// - A region may wait for a quarter of its time. It is the first choice, but on a busy machine OpenMP's threads lose
//   most: they spin for milliseconds, and so use up the time that the scheduler gives them.
// - Then calls run alone for 40 ms, to measure how long that takes: the caller does not always run either.
// - After that our own threads form the teams, as they soon sleep. What they save, compared with one thread, goes to
//   the account, and what they lose is taken from it. One thread would have taken as long as calls did when they last
//   ran alone; if that was long ago, or never, `threads` times as long as the caller did without waiting.
// - Otherwise calls run alone.
// An account holds at most 10 ms. When it is empty, its team is not used for 20 times the loss (200 times for a region,
// as our own threads replace it), and is then tried again. A machine that is always busy thus costs about a twentieth,
// and one that becomes quiet has its teams back.
//
// A try begins with an advance of as much as the last one lost. A single team would often fail: the system may wake a
// member on the CPU of its caller, and moves it to an idle one only when both have been running for a few milliseconds.
class Call {
 public:
  // `work`: more than 0, any measure of the work of a direction that is the same for all calls.
  explicit Call(double work);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  // The most threads for this call, at least 1 and at most `most`.
  int threads(int most) const;
};

// The team to use for this thread's call, and whether the call runs alone although teams may be faster.
Team team_now();
bool alone_now();

// Says that a team of this thread's call took `total` seconds, of which this thread waited `lost`, or that the call
// took so many seconds alone. Both are for one direction.
void team_ended(Team team, int threads, double total, double lost);
void alone_ended(double seconds);

// The number of calls at this time, at least 1.
int calls_now();

// Changes that number, for tests of calls at the same time.
void add_calls(int number);

}  // namespace cpu
}  // namespace lstmkern
