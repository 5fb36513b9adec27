// The state of a running launch, shared by the simulator's files: fibers.cpp (threads and their stacks), scheduler.cpp
// (launches), primitives.cpp (what a kernel calls), transactions.cpp (barriers that count bytes), memory.cpp (guarded
// buffers), bounds.cpp (launch bounds).
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "simt.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

// --- random order ---

struct Random {
  uint64_t state = 1;
  uint64_t next() {  // splitmix64
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  size_t below(size_t n) { return n < 2 ? 0 : next() % n; }
};
extern Random random_;

// --- a stack to switch to ---

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif

#if defined(__x86_64__)
// Saves the registers that the System V ABI says a function must preserve on the old stack and loads them from the new
// one.
extern "C" void simt_switch(void** save, void* to);
struct Context {
  void* sp = nullptr;
  void prepare(char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15));
    *--top = nullptr;  // where entry would return to; keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp = top;
  }
  static void change(Context& from, Context& to) { simt_switch(&from.sp, to.sp); }
};
#else
struct Context {
  ucontext_t context;
  void prepare(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

// --- what a launch consists of ---

constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xa5, kPoison = 0xff;  // as a float, a double or 16 bits: NaN

enum class State { ready, at_block, at_warp, at_cluster, at_flag, at_mbarrier, done };

struct Copy {
  void* to;
  const void* from;
};

struct Block;
struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  ThreadInfo info;
  Block* block = nullptr;
  State state = State::ready;
  Place place{"", 0};
  const char* what = "";
  const unsigned* flag = nullptr;
  unsigned wanted = 0;
  size_t mbarrier = 0;   // at this place of the block's memory, for the phase of parity `wanted`
  bool arrived = false;  // at the cluster's barrier, before its wait
  uint64_t arrived_in = 0;
  std::vector<std::vector<Copy>> groups;  // committed asynchronous copies, oldest first
  std::vector<Copy> uncommitted;
};

struct Warp {
  unsigned arrived = 0;
  Place place{"", 0};
  const char* what = "";
  char given[32][64];
  void* out[32];
};

// A barrier that counts bytes: how many phases have ended, and how many bytes the current one still needs. Bytes may
// arrive before they are announced, within the 20 bits that the hardware counts.
struct Transactions {
  uint64_t phase = 0;
  bool awaited = false;
  int64_t bytes = 0;
};

struct Cluster;
struct Block {
  Cluster* cluster = nullptr;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  size_t waiting = 0, done = 0;
  Place place{"", 0};
  char* memory = nullptr;  // this block's part of the arena
  size_t dynamic = 0, used = 0;
  std::map<std::pair<const char*, int>, std::pair<size_t, size_t>> arrays;  // offset, bytes
  std::map<size_t, Transactions> mbarriers;                                 // by their offset in memory
};

// A 16-byte store to another block that has not been written yet.
struct PendingStore {
  Block* to;
  size_t at, mbarrier;
  char value[16];
  Place place;
};

struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  size_t arrived = 0, threads = 0, done = 0;
  uint64_t phase = 0;
};

struct Machine {
  LaunchInfo info;
  const std::function<void()>* thread = nullptr;
  Context main;
  void* main_fake = nullptr;
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  Fiber* current = nullptr;
  std::vector<Fiber*> ready, at_flags;
  std::vector<std::unique_ptr<Cluster>> resident;
  std::vector<PendingStore> pending_stores;
  std::string error;
  uint64_t idle_polls = 0;  // flag reads since anything else happened
};
extern Machine* machine;

constexpr size_t kArena = 320 * 1024;  // of shared memory per block
extern std::vector<Fiber*> idle_fibers;

std::string text(const Index& i);
std::string text(Place p);
inline bool same(Place a, Place b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

// --- fibers.cpp ---

void start(Block* block, unsigned rank, const ThreadInfo& info);  // adds a thread to the block, ready to run
void resume(Fiber* f);                                            // runs it until it gives up control
void to_main(Fiber* f);                                           // gives up control
void block_on(State state, Place place, const char* what);        // gives up control until wake()
void wake(Fiber* f);
void complete(std::vector<Copy>& copies);

// --- transactions.cpp ---

void deliver(const PendingStore& store);       // writes it to its block
void check_pending_stores(const Block* block);  // throws if there is one to this block, which has ended

}  // namespace simt
