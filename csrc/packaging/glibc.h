// A library binds to the newest version of each symbol that the glibc of its compiler has, and then refuses to load on
// an older one. This binds to the version that every glibc since 2.17 has, so that a wheel made anywhere serves what
// torch's own wheels serve (docs/decisions/two-libraries.md).
//
// OLD(pthread_create, "GLIBC_2.2.5") is for objects that are compiled already (the static CUDA runtime): setup.py gives
// the linker --wrap=pthread_create for it, which sends their calls to the jump here.
#pragma once

#include <features.h>

#if defined(__x86_64__) && defined(__GLIBC__)
__asm__(R"(
.macro old name, version
  .text
  .hidden __wrap_\name
  .globl __wrap_\name
  .type __wrap_\name, @function
__wrap_\name:
  jmp *\name\()_old@GOTPCREL(%rip)
  .size __wrap_\name, .-__wrap_\name
  .symver \name\()_old, \name\()@\version
.endm
)");
#define OLD(name, version) __asm__("old " #name ", " version)

// Since 2.32 libstdc++ asks it whether it may leave atomic operations out. Here it may not.
#define NEVER_SINGLE_THREADED                                                   \
  extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded; \
  char __libc_single_threaded = 0
#else
#define OLD(name, version) static_assert(true, "")
#define NEVER_SINGLE_THREADED static_assert(true, "")
#endif
