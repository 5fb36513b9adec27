// What a kernel calls: barriers, collectives, shared memory, clusters, flags, asynchronous copies.
#include "machine.h"

namespace simt {

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
  if (!b->dynamic) fail("the launch requested no dynamic shared memory");
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

namespace {

// Waits for all lanes of a warp. The last one to arrive calls deliver(warp) and wakes the others.
template <class Deliver>
void rendezvous(const void* value, size_t bytes, void* out, const char* what, Place place, const Deliver& deliver) {
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
  std::memcpy(w.given[lane], value, bytes);
  w.out[lane] = out;
  if (w.arrived != 0xffffffffu) {
    block_on(State::at_warp, place, what);
    return;
  }
  w.arrived = 0;
  deliver(w);
  for (unsigned i = 0; i < 32; ++i) {
    Fiber* other = b->fibers[f->info.rank / 32 * 32 + i];
    if (other != f) wake(other);
  }
  yield();
}

}  // namespace

void exchange(const void* value, size_t bytes, void* all, const char* what, Place place) {
  rendezvous(value, bytes, all, what, place, [](Warp& w) {
    for (void* out : w.out) std::memcpy(out, w.given, sizeof w.given);
  });
}

void collective(const void* value, size_t bytes, void* result, size_t result_bytes, Combine combine, const char* what,
                Place place) {
  rendezvous(value, bytes, result, what, place, [&](Warp& w) {
    char results[32][64];
    combine(w.given, results);
    for (unsigned i = 0; i < 32; ++i) std::memcpy(w.out[i], results[i], result_bytes);
  });
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
  if (random_.below(4) == 0) {  // sometimes a copy completes early
    complete(f->groups.front());
    f->groups.erase(f->groups.begin());
  }
}

void async_wait(int newest) {
  Fiber* f = machine->current;
  while (f->groups.size() > size_t(newest)) {
    complete(f->groups.front());
    f->groups.erase(f->groups.begin());
  }
}

}  // namespace simt
