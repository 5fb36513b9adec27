// Launches: which are refused, which blocks are resident, which thread runs next, and the report of a deadlock.
#include "machine.h"

#include <algorithm>
#include <sstream>

namespace simt {
namespace {

Device device_;
uint64_t launches_ = 0;
std::vector<char*> arenas;

std::string where(Fiber* f) {
  std::string s = f->what;
  s += " at " + text(f->place);
  if (f->state == State::at_flag)
    s += " (is " + std::to_string(*f->flag) + ", wanted " + std::to_string(f->wanted) + ")";
  if (f->state == State::at_mbarrier)
    s += " (" + std::to_string(f->block->mbarriers[f->mbarrier].bytes) + " bytes missing)";
  return s;
}

// The report of a deadlock: which threads wait where, and which are missing.
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
  std::vector<Fiber*> missing;  // finished, while others of their block wait for them
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
  complete(f->uncommitted);
  for (auto& g : f->groups) complete(g);
  ++f->block->done;
  ++f->block->cluster->done;
  machine->idle_polls = 0;
  if (f->block->done == f->block->fibers.size()) {
    check_shared(f->block, f);
    check_pending_stores(f->block);
    std::memset(f->block->memory, kPoison, f->block->used);  // a block that still reads it gets NaN
  }
}

void refuse(const LaunchInfo& l, const std::string& why) {
  throw Error(std::string("launch of ") + l.name + " refused: " + why + " (grid " + text(l.grid) + ", block " +
              text(l.block) + ", " + std::to_string(l.shared) + " bytes of shared memory)");
}

size_t check_launch(const LaunchInfo& l) {  // returns how many blocks can be resident together
  const Device& d = device_;
  if (l.bound == 0) refuse(l, "not a kernel");
  if (l.grid.count() == 0 || l.block.count() == 0) refuse(l, "empty grid or block");
  if (l.block.count() > 1024 || l.block.x > 1024 || l.block.y > 1024) refuse(l, "more than 1024 threads in a block");
  if (l.block.z > 64) refuse(l, "block.z above 64");
  if (l.block.count() > l.bound) refuse(l, "block larger than the kernel's bound, " + std::to_string(l.bound));
  if (l.grid.x > 0x7fffffffu) refuse(l, "grid.x above 2^31 - 1");
  if (l.grid.y > 65535 || l.grid.z > 65535) refuse(l, "grid.y or grid.z above 65535");
  if (l.shared > d.shared_per_block) refuse(l, "more shared memory than a block can have");
  if (l.cluster < 1 || l.cluster > d.largest_cluster) refuse(l, "cluster larger than the device allows");
  if (l.grid.x % l.cluster) refuse(l, "grid.x is no multiple of the cluster");
  const size_t by_threads = d.threads_per_multiprocessor / ((l.block.count() + 31) / 32 * 32);
  const size_t by_shared = d.shared_per_multiprocessor / (l.shared + d.shared_reserved);
  const size_t by_registers = d.registers_per_multiprocessor / (l.block.count() * d.registers_per_thread);
  const size_t each =
      std::min({by_threads, by_shared, std::max(by_registers, size_t(1)), size_t(d.blocks_per_multiprocessor)});
  const size_t resident = each * d.multiprocessors / l.cluster * l.cluster;
  if (l.cooperative && l.grid.count() > resident)
    refuse(l, "cooperative grid larger than can be resident, " + std::to_string(resident) + " blocks");
  return resident;
}

Index unflatten(uint64_t i, const Index& size) {
  return {unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)};
}

void enter(uint64_t first) {  // makes a cluster resident; `first` is its number
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

void remove_finished() {
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

bool wake_at_flags() {
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
  // Unless the launch is cooperative, only a few blocks are resident at the same time, in any order.
  const uint64_t room = l.cooperative ? clusters : 1 + random_.below(3);
  std::vector<uint64_t> order(clusters);
  for (uint64_t i = 0; i < clusters; ++i) order[i] = i;
  for (uint64_t i = clusters; i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
  auto& ready = machine->ready;
  // At times one block rarely runs for a while, so that the others get as far ahead of it as they can.
  const Block* slow = nullptr;
  uint64_t change = 0;
  while (true) {
    remove_finished();
    while (machine->resident.size() < room && !order.empty()) {
      enter(order.back());
      order.pop_back();
    }
    if (machine->resident.empty()) return;
    auto& pending_stores = machine->pending_stores;
    if (!pending_stores.empty() && (ready.empty() || random_.below(4) == 0)) {
      std::swap(pending_stores[random_.below(pending_stores.size())], pending_stores.back());
      const PendingStore store = pending_stores.back();
      pending_stores.pop_back();
      deliver(store);
    }
    if (!machine->at_flags.empty() && (ready.empty() || random_.below(16) == 0)) wake_at_flags();
    if (ready.empty() && !pending_stores.empty()) continue;
    if (ready.empty()) throw Error(deadlock());
    if (machine->idle_polls > 1000 + 100 * ready.size()) throw Error(deadlock());
    if (change-- == 0) {
      const auto& blocks = machine->resident[random_.below(machine->resident.size())]->blocks;
      slow = random_.below(4) ? blocks[random_.below(blocks.size())].get() : nullptr;
      change = uint64_t(1) << random_.below(16);
    }
    size_t pick = random_.below(ready.size());
    const int again = machine->idle_polls > 200 ? 0 : 16;  // 0 if all others wait for the slow block
    for (int i = 0; i < again && ready[pick]->block == slow; ++i) pick = random_.below(ready.size());
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

}  // namespace

Device& device() { return device_; }
void seed(uint64_t value) { random_.state = value; }
uint64_t launches() { return launches_; }

size_t resident_blocks(const LaunchInfo& info) { return check_launch(info); }

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
    // The fibers are not unwound: kernels own nothing that needs a destructor.
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

}  // namespace simt
