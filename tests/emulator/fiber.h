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

namespace emulator {

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

using Context = void*;  // the stack pointer; everything else lies on the stack

extern "C" __attribute__((visibility("hidden"))) void emulator_switch(Context* from, Context to);

inline void switch_context(Context& from, Context& to) { emulator_switch(&from, to); }

inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  // A fresh stack looks as if entry had been called and had pushed its six registers; the zero above entry's address
  // ends back traces and leaves the stack as misaligned as after a call.
  uintptr_t top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15);
  auto* frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(entry);
  context = frame;
}

#else

using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

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
    prepare_context(context, stack_, kBytes - colour, entry);
  }

  uintptr_t stack_begin() const { return reinterpret_cast<uintptr_t>(stack_); }
  uintptr_t stack_end() const { return stack_begin() + kBytes; }

  Context context;

 private:
  static constexpr size_t kPage = 4096;
  static constexpr size_t kBytes = 17 * kPage;
  int index_;
  char* stack_;
};

}  // namespace emulator
