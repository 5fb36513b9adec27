// The scheduler behind simt.h: fibers, barriers, clusters, flags, guarded memory.
#include "simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {
namespace {

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
} random_;
Device device_;
uint64_t launches_ = 0;

// --- switching stacks ---

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif

#if defined(__x86_64__)
// Saves what the System V ABI lets a function keep on the old stack, and takes it from the new one.
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
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

enum class State { ready, at_block, at_warp, at_cluster, at_flag, done };

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
  bool arrived = false;  // at the cluster's barrier, and has not waited yet
  uint64_t arrived_in = 0;
  std::vector<std::vector<Copy>> groups;  // committed asynchronous copies, oldest first
  std::vector<Copy> uncommitted;
};

struct Warp {
  unsigned arrived = 0;
  Place place{"", 0};
  const char* what = "";
  char given[32][64];
  char (*out[32])[64];
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
  std::string error;
  uint64_t idle_polls = 0;  // flag reads since anything else happened
};
Machine* machine = nullptr;

std::vector<char*> stacks;
std::vector<Fiber*> idle_fibers;
std::vector<char*> arenas;
constexpr size_t kArena = 320 * 1024;

char* take_stack() {
  if (!stacks.empty()) {
    char* s = stacks.back();
    stacks.pop_back();
    return s;
  }
  // The page below stays unmapped, so that running off the end is a fault and not a riddle.
  void* p = mmap(nullptr, kStack + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("no memory for a fiber's stack");
  mprotect(p, 4096, PROT_NONE);
  return static_cast<char*>(p) + 4096;
}

std::string text(const Index& i) {
  std::ostringstream s;
  s << "(" << i.x << "," << i.y << "," << i.z << ")";
  return s.str();
}

std::string text(Place p) {
  const char* name = p.file;
  for (const char* c = p.file; *c; ++c)
    if (*c == '/') name = c + 1;
  return std::string(name) + ":" + std::to_string(p.line);
}

bool same(Place a, Place b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

// --- running fibers ---

void to_main(Fiber* f) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(f->state == State::done ? nullptr : &f->fake_stack, machine->main_bottom,
                                 machine->main_size);
#endif
  Context::change(f->context, machine->main);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f->fake_stack, nullptr, nullptr);
#endif
}

void fiber_entry() {
  Fiber* f = machine->current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine->main_bottom, &machine->main_size);
#endif
  try {
    (*machine->thread)();
  } catch (const std::exception& e) {
    if (machine->error.empty()) machine->error = e.what();
  }
  f->state = State::done;
  to_main(f);
  std::abort();  // a fiber that is done is never run again
}

void resume(Fiber* f) {
  machine->current = f;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine->main_fake, f->stack, kStack);
#endif
  Context::change(machine->main, f->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine->main_fake, nullptr, nullptr);
#endif
  machine->current = nullptr;
}

// The fiber stops until somebody makes it ready.
void block_on(State state, Place place, const char* what) {
  Fiber* f = machine->current;
  f->state = state;
  f->place = place;
  f->what = what;
  to_main(f);
}

void wake(Fiber* f) {
  f->state = State::ready;
  machine->ready.push_back(f);
  machine->idle_polls = 0;
}

void land(std::vector<Copy>& copies) {
  for (const Copy& c : copies) std::memcpy(c.to, c.from, 16);
  copies.clear();
}

void start(Block* block, unsigned rank, const ThreadInfo& info) {
  Fiber* f;
  if (idle_fibers.empty()) {
    f = new Fiber;
    f->stack = take_stack();
  } else {
    f = idle_fibers.back();
    idle_fibers.pop_back();
  }
  f->info = info;
  f->info.rank = rank;
  f->block = block;
  f->state = State::ready;
  f->arrived = false;
  f->groups.clear();
  f->uncommitted.clear();
  f->context.prepare(f->stack, kStack, fiber_entry);
  block->fibers.push_back(f);
  machine->ready.push_back(f);
}

std::string where(Fiber* f) {
  std::string s = f->what;
  s += " at " + text(f->place);
  if (f->state == State::at_flag)
    s += " (is " + std::to_string(*f->flag) + ", wanted " + std::to_string(f->wanted) + ")";
  return s;
}

// Who waits where, and who is missing.
std::string deadlock() {
  std::map<std::string, std::vector<Fiber*>> waiting;
  std::vector<Fiber*> left;
  for (auto& cluster : machine->resident)
    for (auto& block : cluster->blocks)
      for (Fiber* f : block->fibers) {
        if (f->state == State::done)
          left.push_back(f);
        else
          waiting[f->state == State::ready ? std::string("polling a flag at ") + text(f->place) : where(f)].push_back(
              f);
      }
  std::ostringstream s;
  s << "deadlock in " << machine->info.name << ":";
  auto list = [&](const std::vector<Fiber*>& fibers) {
    for (size_t i = 0; i < fibers.size() && i < 4; ++i)
      s << (i ? ", " : " ") << "thread " << text(fibers[i]->info.thread) << " of block " << text(fibers[i]->info.block);
    if (fibers.size() > 4) s << ", ...";
  };
  for (auto& group : waiting) {
    s << "\n  " << group.second.size() << " waiting: " << group.first << ":";
    list(group.second);
  }
  std::vector<Fiber*> missing;  // that left while others of their block wait for them
  for (Fiber* f : left)
    for (Fiber* other : f->block->fibers)
      if (other->state == State::at_block || other->state == State::at_cluster ||
          (other->state == State::at_warp && other->info.rank / 32 == f->info.rank / 32)) {
        missing.push_back(f);
        break;
      }
  if (!missing.empty()) {
    s << "\n  missing, they have left the kernel: " << missing.size() << ":";
    list(missing);
  }
  return s.str();
}

void check_shared(Block* block, Fiber* f) {
  for (auto& array : block->arrays) {
    const size_t end = array.second.first + array.second.second;
    for (size_t i = end; i < end + kGuard; ++i)
      if (static_cast<unsigned char>(block->memory[i]) != kGuardByte)
        throw Error(std::string("write past a shared array in ") + machine->info.name + ", array of " +
                    text(Place{array.first.first, array.first.second}) + ", block " + text(f->info.block));
  }
  for (size_t i = block->dynamic; block->dynamic && i < block->dynamic + kGuard; ++i)
    if (static_cast<unsigned char>(block->memory[i]) != kGuardByte)
      throw Error(std::string("write past the dynamic shared memory in ") + machine->info.name);
}

void finished(Fiber* f) {
  land(f->uncommitted);
  for (auto& g : f->groups) land(g);
  ++f->block->done;
  ++f->block->cluster->done;
  machine->idle_polls = 0;
  if (f->block->done == f->block->fibers.size()) {
    check_shared(f->block, f);
    std::memset(f->block->memory, kPoison, f->block->used);  // a neighbour that still looks sees that it is gone
  }
}

void refuse(const LaunchInfo& l, const std::string& why) {
  throw Error(std::string("launch of ") + l.name + " refused: " + why + " (grid " + text(l.grid) + ", block " +
              text(l.block) + ", " + std::to_string(l.shared) + " bytes of shared memory)");
}

void check_launch(const LaunchInfo& l) {
  const Device& d = device_;
  if (l.grid.count() == 0 || l.block.count() == 0) refuse(l, "empty grid or block");
  if (l.block.count() > 1024 || l.block.x > 1024 || l.block.y > 1024) refuse(l, "more than 1024 threads in a block");
  if (l.block.z > 64) refuse(l, "block.z above 64");
  if (l.grid.x > 0x7fffffffu) refuse(l, "grid.x above 2^31 - 1");
  if (l.grid.y > 65535 || l.grid.z > 65535) refuse(l, "grid.y or grid.z above 65535");
  if (l.shared > d.shared_per_block) refuse(l, "more shared memory than a block can have");
  if (l.cluster < 1 || l.cluster > d.largest_cluster) refuse(l, "cluster larger than the device allows");
  if (l.grid.x % l.cluster) refuse(l, "grid.x is no multiple of the cluster");
  const size_t by_threads = d.threads_per_multiprocessor / ((l.block.count() + 31) / 32 * 32);
  const size_t by_shared = d.shared_per_multiprocessor / (l.shared + d.shared_reserved);
  const size_t each = std::min({by_threads, by_shared, size_t(d.blocks_per_multiprocessor)});
  if (l.cooperative && l.grid.count() > each * d.multiprocessors)
    refuse(l, "cooperative grid larger than can be resident, " + std::to_string(each * d.multiprocessors) + " blocks");
}

Index unflatten(uint64_t i, const Index& size) {
  return {unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)};
}

void enter(uint64_t first) {  // a cluster becomes resident; `first` is its number
  const LaunchInfo& l = machine->info;
  machine->resident.emplace_back(new Cluster);
  Cluster* cluster = machine->resident.back().get();
  cluster->threads = l.block.count() * l.cluster;
  for (unsigned rank = 0; rank < l.cluster; ++rank) {
    cluster->blocks.emplace_back(new Block);
    Block* block = cluster->blocks.back().get();
    block->cluster = cluster;
    block->warps.resize((l.block.count() + 31) / 32);
    if (arenas.empty()) arenas.push_back(static_cast<char*>(aligned_alloc(128, kArena)));
    block->memory = arenas.back();
    arenas.pop_back();
    std::memset(block->memory, kPoison, l.shared);
    block->dynamic = l.shared;
    if (l.shared) std::memset(block->memory + l.shared, kGuardByte, kGuard);
    block->used = l.shared ? (l.shared + kGuard + 127) / 128 * 128 : 0;
    ThreadInfo info;
    info.block = unflatten(first * l.cluster + rank, l.grid);
    info.block_size = l.block;
    info.grid_size = l.grid;
    info.cluster_rank = rank;
    info.cluster_size = l.cluster;
    for (unsigned t = 0; t < l.block.count(); ++t) {
      info.thread = unflatten(t, l.block);
      start(block, t, info);
    }
  }
}

void leave_finished() {
  auto& all = machine->resident;
  for (size_t i = 0; i < all.size();) {
    if (all[i]->done < all[i]->threads) {
      ++i;
      continue;
    }
    for (auto& block : all[i]->blocks) {
      for (Fiber* f : block->fibers) idle_fibers.push_back(f);
      arenas.push_back(block->memory);
    }
    all[i] = std::move(all.back());
    all.pop_back();
  }
}

bool look_at_flags() {
  auto& fibers = machine->at_flags;
  bool any = false;
  for (size_t i = 0; i < fibers.size();) {
    Fiber* f = fibers[i];
    if (int(*f->flag - f->wanted) < 0) {
      ++i;
      continue;
    }
    wake(f);
    any = true;
    fibers[i] = fibers.back();
    fibers.pop_back();
  }
  return any;
}

void schedule() {
  const LaunchInfo& l = machine->info;
  const uint64_t clusters = l.grid.count() / l.cluster;
  // Without a promise that all blocks are resident together, only a few are, and in any order.
  const uint64_t room = l.cooperative ? clusters : 1 + random_.below(3);
  std::vector<uint64_t> order(clusters);
  for (uint64_t i = 0; i < clusters; ++i) order[i] = i;
  for (uint64_t i = clusters; i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
  auto& ready = machine->ready;
  while (true) {
    leave_finished();
    while (machine->resident.size() < room && !order.empty()) {
      enter(order.back());
      order.pop_back();
    }
    if (machine->resident.empty()) return;
    if (!machine->at_flags.empty() && (ready.empty() || random_.below(16) == 0)) look_at_flags();
    if (ready.empty()) throw Error(deadlock());
    if (machine->idle_polls > 1000 + 100 * ready.size()) throw Error(deadlock());
    const size_t pick = random_.below(ready.size());
    Fiber* f = ready[pick];
    ready[pick] = ready.back();
    ready.pop_back();
    resume(f);
    if (!machine->error.empty()) throw Error(machine->error);
    if (f->state == State::ready)
      ready.push_back(f);
    else if (f->state == State::at_flag)
      machine->at_flags.push_back(f);
    else if (f->state == State::done)
      finished(f);
  }
}

struct Buffer {
  char* base;
  size_t bytes;
  std::string name;
};
std::vector<Buffer> buffers;
constexpr size_t kZone = 256;

}  // namespace

// --- the interface ---

Device& device() { return device_; }
void seed(uint64_t value) { random_.state = value; }
uint64_t launches() { return launches_; }

void* allocate(size_t bytes, const char* name) {
  // Zones right at the end, so that one element too many is seen; under AddressSanitizer also when it is only read.
  char* base = static_cast<char*>(aligned_alloc(256, (bytes + 2 * kZone + 255) / 256 * 256));
  std::memset(base, kPoison, bytes + 2 * kZone);
  std::memset(base, kGuardByte, kZone);
  std::memset(base + kZone + bytes, kGuardByte, kZone);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(base, kZone);
  ASAN_POISON_MEMORY_REGION(base + kZone + bytes, kZone);
#endif
  buffers.push_back({base, bytes, name});
  return base + kZone;
}

void check_guards() {
#if !defined(__SANITIZE_ADDRESS__)
  for (const Buffer& b : buffers)
    for (size_t i = 0; i < kZone; ++i) {
      if (static_cast<unsigned char>(b.base[i]) != kGuardByte) throw Error("write before the buffer " + b.name);
      if (static_cast<unsigned char>(b.base[kZone + b.bytes + i]) != kGuardByte)
        throw Error("write past the end of the buffer " + b.name);
    }
#endif
}

void free_all() {
  for (const Buffer& b : buffers) {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(b.base, b.bytes + 2 * kZone);
#endif
    free(b.base);
  }
  buffers.clear();
}

void run(const LaunchInfo& info, const std::function<void()>& thread) {
  ++launches_;
  check_launch(info);
  Machine m;
  m.info = info;
  m.thread = &thread;
  machine = &m;
  try {
    schedule();
  } catch (...) {
    // The fibers are left where they stand: kernels own nothing that would have to be destroyed.
    for (auto& cluster : m.resident)
      for (auto& block : cluster->blocks) {
        idle_fibers.insert(idle_fibers.end(), block->fibers.begin(), block->fibers.end());
        arenas.push_back(block->memory);
      }
    machine = nullptr;
    throw;
  }
  machine = nullptr;
}

const ThreadInfo& self() { return machine->current->info; }

void fail(const std::string& message) {
  if (!machine) throw Error(message);
  const ThreadInfo& i = self();
  throw Error(message + " in " + machine->info.name + ", thread " + text(i.thread) + " of block " + text(i.block));
}

void yield() {
  machine->idle_polls = 0;
  to_main(machine->current);
}

void polled(Place place) {
  ++machine->idle_polls;
  machine->current->place = place;
  to_main(machine->current);
}

void* shared_array(size_t bytes, const char* file, int line) {
  Block* b = machine->current->block;
  auto found = b->arrays.find({file, line});
  if (found == b->arrays.end()) {
    if (b->used - (b->dynamic ? (b->dynamic + kGuard + 127) / 128 * 128 : 0) + bytes > 48 * 1024)
      fail("more than 48 KiB of static shared memory");
    const size_t at = b->used;
    b->used = (at + bytes + kGuard + 127) / 128 * 128;
    if (at + bytes + kGuard > kArena) fail("shared memory exhausted");
    std::memset(b->memory + at, kPoison, bytes);
    std::memset(b->memory + at + bytes, kGuardByte, kGuard);
    found = b->arrays.insert({{file, line}, {at, bytes}}).first;
  }
  return b->memory + found->second.first;
}

void* dynamic_shared() {
  Block* b = machine->current->block;
  if (!b->dynamic) fail("no dynamic shared memory was asked for at launch");
  return b->memory;
}

void sync_block(Place place) {
  Fiber* f = machine->current;
  Block* b = f->block;
  if (b->waiting && !same(b->place, place))
    fail("threads of one block at two barriers, " + text(b->place) + " and " + text(place));
  b->place = place;
  if (++b->waiting == b->fibers.size()) {
    b->waiting = 0;
    for (Fiber* other : b->fibers)
      if (other != f) wake(other);
    yield();
    return;
  }
  block_on(State::at_block, place, "sync_block");
}

void exchange(const void* mine, size_t bytes, void* all, const char* what, Place place) {
  Fiber* f = machine->current;
  Block* b = f->block;
  if (b->fibers.size() % 32) fail(std::string(what) + " in a block that is no multiple of 32 threads");
  Warp& w = b->warps[f->info.rank / 32];
  const unsigned lane = f->info.rank % 32;
  if (w.arrived && (!same(w.place, place) || std::strcmp(w.what, what)))
    fail(std::string("lanes of one warp at two collectives, ") + w.what + " at " + text(w.place) + " and " + what +
         " at " + text(place));
  w.place = place;
  w.what = what;
  w.arrived |= 1u << lane;
  std::memcpy(w.given[lane], mine, bytes);
  w.out[lane] = static_cast<char (*)[64]>(all);
  if (w.arrived != 0xffffffffu) {
    block_on(State::at_warp, place, what);
    return;
  }
  w.arrived = 0;
  for (unsigned i = 0; i < 32; ++i) std::memcpy(w.out[i], w.given, sizeof w.given);
  for (unsigned i = 0; i < 32; ++i) {
    Fiber* other = b->fibers[f->info.rank / 32 * 32 + i];
    if (other != f) wake(other);
  }
  yield();
}

void cluster_arrive(Place place) {
  Fiber* f = machine->current;
  Cluster* c = f->block->cluster;
  if (f->arrived) fail("cluster_arrive twice without cluster_wait, at " + text(place));
  f->arrived = true;
  f->arrived_in = c->phase;
  if (++c->arrived < c->threads) return;
  c->arrived = 0;
  ++c->phase;
  for (auto& block : c->blocks)
    for (Fiber* other : block->fibers)
      if (other->state == State::at_cluster) wake(other);
}

void cluster_wait(Place place) {
  Fiber* f = machine->current;
  if (!f->arrived) fail("cluster_wait without cluster_arrive, at " + text(place));
  f->arrived = false;
  if (f->block->cluster->phase == f->arrived_in)
    block_on(State::at_cluster, place, "cluster barrier");
  else
    yield();
}

void* remote(void* shared, unsigned rank, Place place) {
  Fiber* f = machine->current;
  Cluster* c = f->block->cluster;
  if (rank >= c->blocks.size()) fail("remote: no block " + std::to_string(rank) + " in the cluster, at " + text(place));
  const ptrdiff_t at = static_cast<char*>(shared) - f->block->memory;
  if (at < 0 || at >= ptrdiff_t(f->block->used)) fail("remote: not an address in shared memory, at " + text(place));
  Block* other = c->blocks[rank].get();
  if (other->done == other->fibers.size()) fail("remote: that block has ended, at " + text(place));
  // Static arrays are laid out at their first use; the other block may not have got there.
  for (auto& a : f->block->arrays)
    if (size_t(at) >= a.second.first && size_t(at) < a.second.first + a.second.second) {
      auto theirs = other->arrays.find(a.first);
      if (theirs == other->arrays.end())
        fail("remote: the other block has not started (sync_cluster first), at " + text(place));
      return other->memory + theirs->second.first + (size_t(at) - a.second.first);
    }
  return other->memory + at;
}

void wait_flag(const unsigned* flag, unsigned value, Place place) {
  Fiber* f = machine->current;
  f->flag = flag;
  f->wanted = value;
  block_on(State::at_flag, place, "wait_flag");
}

void async_copy16(void* shared, const void* global) { machine->current->uncommitted.push_back({shared, global}); }

void async_commit() {
  Fiber* f = machine->current;
  f->groups.emplace_back(std::move(f->uncommitted));
  f->uncommitted.clear();
  if (random_.below(4) == 0) {  // now and then one lands early
    land(f->groups.front());
    f->groups.erase(f->groups.begin());
  }
}

void async_wait(int newest) {
  Fiber* f = machine->current;
  while (f->groups.size() > size_t(newest)) {
    land(f->groups.front());
    f->groups.erase(f->groups.begin());
  }
}

}  // namespace simt
