// Threads as fibers: stacks, switching between them, blocking and waking.
#include "machine.h"

#include <sys/mman.h>

#include <sstream>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

Random random_;
Machine* machine = nullptr;
std::vector<Fiber*> idle_fibers;

#if defined(__x86_64__)
// Saves the registers that the System V ABI says a function must preserve on the old stack and loads them from the new
// one.
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
#endif

namespace {

std::vector<char*> stacks;

char* allocate_stack() {
  if (!stacks.empty()) {
    char* s = stacks.back();
    stacks.pop_back();
    return s;
  }
  // The page below has no access rights, so that a stack overflow is a fault at once.
  void* p = mmap(nullptr, kStack + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw Error("no memory for a fiber's stack");
  mprotect(p, 4096, PROT_NONE);
  return static_cast<char*>(p) + 4096;
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
  std::abort();  // a finished fiber never runs again
}

}  // namespace

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

void complete(std::vector<Copy>& copies) {
  for (const Copy& c : copies) std::memcpy(c.to, c.from, 16);
  copies.clear();
}

void start(Block* block, unsigned rank, const ThreadInfo& info) {
  Fiber* f;
  if (idle_fibers.empty()) {
    f = new Fiber;
    f->stack = allocate_stack();
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

}  // namespace simt
