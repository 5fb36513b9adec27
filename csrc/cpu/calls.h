// How many threads a call may use now, given the other calls at the same time and what teams lost before.
#pragma once

namespace lstmkern {
namespace cpu {

// A call of a layer while it runs. Calls in several threads at once share the CPUs: each gets an equal part.
//
// A team is slower than one thread where its members do not run: other processes keep the CPUs busy, or the members
// were asleep and a short call ends before they wake. So a team tells how long its caller waited (team_ended). What
// teams save goes to an account, and what they lose is taken from it; it holds at most 10 ms. When it is empty, calls
// of about the same work on this thread run alone for 20 times the loss, and then teams try again. A machine that is
// always busy thus costs about a twentieth, and one that becomes quiet has its teams back.
//
// A try begins with an advance of as much as the last one lost. A single team would often fail: the system may wake a
// member on the CPU of its caller, and moves it to an idle one only when both have been running for a few milliseconds.
class Call {
 public:
  // `work`: at least 0, any measure of the work of the call that is the same for all calls.
  explicit Call(double work);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  // The most threads for this call, at least 1 and at most `most`.
  int threads(int most) const;
};

// Says that a team of this thread's call took `total` seconds, of which this thread waited `lost`.
void team_ended(int threads, double total, double lost);

// The number of calls at this time, at least 1.
int calls_now();

// Changes that number, for tests of calls at the same time.
void add_calls(int number);

}  // namespace cpu
}  // namespace lstmkern
