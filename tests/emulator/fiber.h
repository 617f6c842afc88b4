// A fiber: a stack of its own and a switch that keeps the callee-saved registers. ucontext would do, but each of its
// switches makes two system calls to save a signal mask that nobody changes.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif
#ifdef EMULATOR_SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

using Machine = void*;  // the stack pointer; everything else lies on the stack

extern "C" __attribute__((visibility("hidden"))) void emulator_switch(Machine* from, Machine to);

inline void switch_machine(Machine& from, Machine& to) { emulator_switch(&from, to); }

inline void prepare_machine(Machine& machine, char* stack, size_t bytes, void (*entry)()) {
  // A fresh stack looks as if entry had been called and had pushed its six registers; the zero above entry's address
  // ends back traces and leaves the stack as misaligned as after a call.
  uintptr_t top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15);
  auto* frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(entry);
  machine = frame;
}

#else

using Machine = ucontext_t;

inline void switch_machine(Machine& from, Machine& to) { swapcontext(&from, &to); }

inline void prepare_machine(Machine& machine, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&machine);
  machine.uc_stack.ss_sp = stack;
  machine.uc_stack.ss_size = bytes;
  machine.uc_link = nullptr;
  makecontext(&machine, entry, 0);
}

#endif

#ifdef EMULATOR_SANITIZED

// AddressSanitizer (`make sanitize`) has to hear which stack runs.
struct Context {
  Machine machine{};
  const void* stack = nullptr;
  size_t bytes = 0;
};

inline void switch_context(Context& from, Context& to) {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.bytes);
  switch_machine(from.machine, to.machine);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// The first that a fiber does; `from` is whence it was started.
inline void enter_context(Context& from) { __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.bytes); }

inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  context.stack = stack;
  context.bytes = bytes;
  __asan_unpoison_memory_region(stack, bytes);  // a kernel that was given up left its frames there
  prepare_machine(context.machine, stack, bytes, entry);
}

constexpr size_t kStackPages = 64;  // instrumented frames are larger

#else

using Context = Machine;
inline void switch_context(Context& from, Context& to) { switch_machine(from, to); }
inline void enter_context(Context&) {}
inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  prepare_machine(context, stack, bytes, entry);
}
constexpr size_t kStackPages = 16;

#endif

class Fiber {
 public:
  explicit Fiber(int index) : index_(index) {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory);
    mprotect(stack_, kPage, PROT_NONE);  // so that an overflow faults instead of spoiling another thread's stack
  }
  ~Fiber() { munmap(stack_, kBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void prepare(void (*entry)()) {
    // Tops at the same offset of every page would share a few cache sets.
    size_t colour = size_t(index_ % 32) * 128;
    prepare_context(context, stack_ + kPage, kBytes - kPage - colour, entry);
  }

  uintptr_t stack_begin() const { return reinterpret_cast<uintptr_t>(stack_); }
  uintptr_t stack_end() const { return stack_begin() + kBytes; }

  Context context;

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kBytes = (1 + kStackPages) * kPage;
  int index_;
  char* stack_;
};

}  // namespace emulator
