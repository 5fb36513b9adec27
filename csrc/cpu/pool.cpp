// See pool.h. The threads wait at one barrier for a team, and at another one for its end.
//
// Why it is correct. All threads of the pool pass both barriers for each team, also those that it does not need. So the
// caller writes the job only while the others are on their way to the first barrier or wait there, and they read it
// between the two. A thread learns how many pass the barriers when the pool is complete, and that does not change until
// the threads have ended.
#include "pool.h"

#include <algorithm>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "team.h"

namespace lstmkern {
namespace cpu {
namespace {

class Pool {
 public:
  ~Pool() { stop(); }

  int run(int threads, void (*body)(void*, int, int), void* arg) {
    if (threads > wanted_) start(threads);
    threads = std::min(threads, size_);
    job_ = {threads, body, arg};
    begin_.wait(size_);
    body(arg, 0, threads);
    end_.wait(size_);
    return threads;
  }

 private:
  struct Job {
    int threads;  // ranks from here on have nothing to do
    void (*body)(void*, int, int);
    void* arg;
  };

  // If the system refuses a thread, teams are as large as possible.
  void start(int threads) {
    stop();
    wanted_ = threads;
    std::lock_guard<std::mutex> no_thread_reads_the_size(starting_);
    try {
      while (size_ < threads) {
        workers_.emplace_back(&Pool::work, this, size_);
        ++size_;
      }
    } catch (const std::system_error&) {
    }
  }

  void stop() {
    job_ = {};
    begin_.wait(size_);
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    size_ = 1;
  }

  void work(int rank) {
    starting_.lock();
    const int size = size_;
    starting_.unlock();
    for (;;) {
      begin_.wait(size);
      const Job job = job_;  // not changed before this thread is at the other barrier
      if (!job.body) return;
      if (rank < job.threads) job.body(job.arg, rank, job.threads);
      end_.wait(size);
    }
  }

  std::vector<std::thread> workers_;
  std::mutex starting_;
  int size_ = 1, wanted_ = 1;  // with the caller
  Job job_ = {};
  Barrier begin_, end_;
};

struct Owner {
  Pool* pool = nullptr;
  ~Owner() {
    if (!is_forked()) delete pool;  // in a forked process there are no threads to join
  }
};

}  // namespace

int run_pool(int threads, void (*body)(void*, int, int), void* arg) {
  thread_local Owner owner;
  if (!owner.pool) owner.pool = new Pool;
  return owner.pool->run(threads, body, arg);
}

}  // namespace cpu
}  // namespace lstmkern
