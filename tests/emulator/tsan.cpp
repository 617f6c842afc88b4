// What -fsanitize=thread calls, in place of libtsan: the loads and stores of the kernels go to the checker and the
// counter. Also the registry of allocations, and where a return address lies in the source.
#include <dlfcn.h>

#include <cstdio>
#include <mutex>

#include "engine.h"

namespace emulator {

std::atomic<bool> checking{false};

namespace {

std::mutex mutex;

std::map<uintptr_t, uintptr_t>& allocations() {
  static auto* map = new std::map<uintptr_t, uintptr_t>;  // outlives every tensor
  return *map;
}

}  // namespace

void add_allocation(const void* data, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  auto begin = reinterpret_cast<uintptr_t>(data);
  allocations()[begin] = begin + bytes;
}

void* pinned_memory(size_t bytes) {
  void* memory = calloc(bytes, 1);
  add_allocation(memory, bytes);
  return memory;
}

void remove_allocation(const void* data) {
  std::lock_guard<std::mutex> lock(mutex);
  allocations().erase(reinterpret_cast<uintptr_t>(data));
}

Range find_allocation(uintptr_t address) {
  std::lock_guard<std::mutex> lock(mutex);
  auto found = allocations().upper_bound(address);
  if (found == allocations().begin()) return {};
  --found;
  return {found->first, found->second};
}

namespace {

std::string addr2line(const char* options, const void* address) {
  Dl_info info;
  if (!dladdr(address, &info)) return "";
  char offset[32], line[4096] = "";
  snprintf(
      offset, sizeof(offset), " 0x%zx",
      size_t(static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase)));
  std::string command = std::string("addr2line ") + options + " -e '" + info.dli_fname + "'" + offset + " 2>/dev/null";
  if (FILE* pipe = popen(command.c_str(), "r")) {
    if (!fgets(line, sizeof(line), pipe)) line[0] = 0;
    pclose(pipe);
  }
  std::string text(line);
  text = text.substr(0, text.find('\n'));
  return text[0] == '?' ? "" : text;
}

}  // namespace

std::string source_line(const void* return_address) {
  std::string line = addr2line("-s", static_cast<const char*>(return_address) - 1);
  return line.empty() ? "an unknown place" : line.substr(0, line.find(' '));
}

std::string function_name(const void* address) { return addr2line("-fC", address); }

namespace {

inline void note(Access kind, const void* address, size_t bytes, const void* pc) {
  bool watching = checking.load(std::memory_order_relaxed) | counting.load(std::memory_order_relaxed);
  if (__builtin_expect(!watching, 1)) return;
  if (Engine* engine = Engine::current()) engine->watch(kind, address, bytes, pc);
}

}  // namespace

void note_atomic(const void* address, size_t bytes, const void* pc) { note(Access::kAtomic, address, bytes, pc); }

}  // namespace emulator

using emulator::Access;
using emulator::note;

#define HIDDEN __attribute__((visibility("hidden")))
#define CALLER __builtin_return_address(0)

#define ACCESS(name, bytes)                                                         \
  HIDDEN void __tsan_read##name(void* a) { note(Access::kRead, a, bytes, CALLER); } \
  HIDDEN void __tsan_write##name(void* a) { note(Access::kWrite, a, bytes, CALLER); }

// Kernels hold no std::atomic; the host code beside them does (a static's guard, the counts of shared_ptr).
#define ATOMICS(bits, type)                                                                                            \
  HIDDEN type __tsan_atomic##bits##_load(const volatile type* a, int) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); } \
  HIDDEN void __tsan_atomic##bits##_store(volatile type* a, type v, int) { __atomic_store_n(a, v, __ATOMIC_SEQ_CST); } \
  HIDDEN type __tsan_atomic##bits##_exchange(volatile type* a, type v, int) {                                          \
    return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                                    \
  HIDDEN type __tsan_atomic##bits##_fetch_add(volatile type* a, type v, int) {                                         \
    return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST);                                                                 \
  }                                                                                                                    \
  HIDDEN type __tsan_atomic##bits##_fetch_sub(volatile type* a, type v, int) {                                         \
    return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST);                                                                 \
  }                                                                                                                    \
  HIDDEN int __tsan_atomic##bits##_compare_exchange_strong(volatile type* a, type* expected, type v, int, int) {       \
    return __atomic_compare_exchange_n(a, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
  }                                                                                                                    \
  HIDDEN int __tsan_atomic##bits##_compare_exchange_weak(volatile type* a, type* expected, type v, int, int) {         \
    return __atomic_compare_exchange_n(a, expected, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                      \
  }

extern "C" {

ACCESS(1, 1)
ACCESS(2, 2)
ACCESS(4, 4)
ACCESS(8, 8)
ACCESS(16, 16)
HIDDEN void __tsan_read_range(void* a, size_t bytes) { note(Access::kRead, a, bytes, CALLER); }
HIDDEN void __tsan_write_range(void* a, size_t bytes) { note(Access::kWrite, a, bytes, CALLER); }
HIDDEN void __tsan_unaligned_read2(void* a) { note(Access::kRead, a, 2, CALLER); }
HIDDEN void __tsan_unaligned_read4(void* a) { note(Access::kRead, a, 4, CALLER); }
HIDDEN void __tsan_unaligned_read8(void* a) { note(Access::kRead, a, 8, CALLER); }
HIDDEN void __tsan_unaligned_read16(void* a) { note(Access::kRead, a, 16, CALLER); }
HIDDEN void __tsan_unaligned_write2(void* a) { note(Access::kWrite, a, 2, CALLER); }
HIDDEN void __tsan_unaligned_write4(void* a) { note(Access::kWrite, a, 4, CALLER); }
HIDDEN void __tsan_unaligned_write8(void* a) { note(Access::kWrite, a, 8, CALLER); }
HIDDEN void __tsan_unaligned_write16(void* a) { note(Access::kWrite, a, 16, CALLER); }
HIDDEN void __tsan_vptr_update(void*, void*) {}
HIDDEN void __tsan_init() {}
HIDDEN void __tsan_func_entry(void*) {}
HIDDEN void __tsan_func_exit() {}
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
HIDDEN void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// From Python.
__attribute__((visibility("default"))) void emulator_check(int on) { emulator::checking = on != 0; }
__attribute__((visibility("default"))) void emulator_add_allocation(const void* data, size_t bytes) {
  emulator::add_allocation(data, bytes);
}
__attribute__((visibility("default"))) void emulator_remove_allocation(const void* data) {
  emulator::remove_allocation(data);
}
}
