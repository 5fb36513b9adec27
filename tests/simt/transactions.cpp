// Stores to other blocks of a cluster, and the barriers that count their bytes. A store is written some time after it
// was issued, in any order (scheduler.cpp); only a barrier shows that it has been.
#include "machine.h"

namespace simt {
namespace {

constexpr int64_t kMaxBytes = (1 << 20) - 1;

size_t place_in(const Block* block, const void* shared, const char* what, Place place) {
  const ptrdiff_t at = static_cast<const char*>(shared) - block->memory;
  if (at < 0 || at >= ptrdiff_t(block->used))
    fail(std::string(what) + ": not an address in shared memory, at " + text(place));
  return size_t(at);
}

Transactions& find(Block* block, size_t at, const char* what, Place place) {
  auto found = block->mbarriers.find(at);
  if (found == block->mbarriers.end())
    throw Error(std::string(what) + ": no barrier was made there, at " + text(place));
  return found->second;
}

void count(Block* block, Transactions& t, int64_t bytes, Place place) {
  t.bytes += bytes;
  if (t.bytes > kMaxBytes || t.bytes < -kMaxBytes)
    throw Error("more bytes than a barrier can count, at " + text(place));
  if (!t.awaited || t.bytes) return;
  t.awaited = false;
  ++t.phase;
  machine->idle_polls = 0;
  for (Fiber* f : block->fibers)
    if (f->state == State::at_mbarrier && &block->mbarriers[f->mbarrier] == &t && (t.phase & 1) != f->wanted) wake(f);
}

}  // namespace

void mbarrier_init(void* barrier, Place place) {
  Block* b = machine->current->block;
  const size_t at = place_in(b, barrier, "mbarrier_init", place);
  if (at % 8) fail("misaligned barrier, at " + text(place));
  b->mbarriers[at] = Transactions{};
  yield();
}

void mbarrier_expect(void* barrier, unsigned bytes, Place place) {
  Block* b = machine->current->block;
  Transactions& t = find(b, place_in(b, barrier, "mbarrier_expect", place), "mbarrier_expect", place);
  if (t.awaited) fail("mbarrier_expect twice in one phase, at " + text(place));
  t.awaited = true;
  count(b, t, bytes, place);
  yield();
}

void mbarrier_wait(const void* barrier, unsigned parity, Place place) {
  Fiber* f = machine->current;
  f->mbarrier = place_in(f->block, barrier, "mbarrier_wait", place);
  f->wanted = parity;
  if ((find(f->block, f->mbarrier, "mbarrier_wait", place).phase & 1) != parity)
    yield();
  else
    block_on(State::at_mbarrier, place, "mbarrier_wait");
}

void store_async16(void* to, const void* value, void* barrier, unsigned rank, Place place) {
  Block* b = machine->current->block;
  Cluster* c = b->cluster;
  if (rank >= c->blocks.size())
    fail("store_async16: no block " + std::to_string(rank) + " in the cluster, at " + text(place));
  if (c->phase == 0)
    fail("store_async16: the other block may not have started (sync_cluster first), at " + text(place));
  Block* other = c->blocks[rank].get();
  if (other->done == other->fibers.size()) fail("store_async16: that block has ended, at " + text(place));
  // The addresses are offsets in shared memory, the same in every block.
  PendingStore f{other, place_in(b, to, "store_async16", place), place_in(b, barrier, "store_async16", place), {}, place};
  std::memcpy(f.value, value, 16);
  machine->pending_stores.push_back(f);
}

void check_pending_stores(const Block* block) {
  for (const PendingStore& f : machine->pending_stores)
    if (f.to == block) throw Error("store_async16: the block has ended to which bytes go, at " + text(f.place));
}

void deliver(const PendingStore& store) {
  Block* b = store.to;
  std::memcpy(b->memory + store.at, store.value, 16);
  count(b, find(b, store.mbarrier, "store_async16", store.place), -16, store.place);
}

}  // namespace simt
