// Shared memory holds garbage when a block starts, and a dynamic array has an end.
#include <link.h>

#include <algorithm>

#include "engine.h"

namespace emulator {

namespace {

struct Words {
  uint32_t* begin = nullptr;
  uint32_t* end = nullptr;
};

// __shared__ is static thread_local, so the static shared memory of all kernels is this library's zero-initialized
// thread-local storage on this OS thread.
Words static_shared_memory() {
  threadIdx.x = 0;  // glibc allocates the storage when a thread first touches it
  Words range;
  auto visit = [](dl_phdr_info* info, size_t, void* data) {
    auto here = reinterpret_cast<uintptr_t>(&static_shared_memory);
    const ElfW(Phdr)* storage = nullptr;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr) & header = info->dlpi_phdr[i];
      if (header.p_type == PT_TLS) storage = &header;
      ours |= header.p_type == PT_LOAD && here - info->dlpi_addr - header.p_vaddr < header.p_memsz;
    }
    if (!ours) return 0;
    if (storage && info->dlpi_tls_data) {
      auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
      auto* range = static_cast<Words*>(data);
      range->begin = reinterpret_cast<uint32_t*>((begin + storage->p_filesz + 3) & ~uintptr_t(3));
      range->end = reinterpret_cast<uint32_t*>((begin + storage->p_memsz) & ~uintptr_t(3));
    }
    return 1;
  };
  dl_iterate_phdr(visit, &range);
  return range;
}

}  // namespace

void Engine::find_static_shared_memory() {
  if (static_shared_begin_) return;
  Words range = static_shared_memory();
  static_shared_begin_ = range.begin;
  static_shared_end_ = range.end;
}

// Everything thread-local in the library is overwritten, threadIdx included; run_block sets it afterwards.
void Engine::poison_shared_memory() {
  std::fill(static_shared_begin_, static_shared_end_, kPoison);
  auto* begin = reinterpret_cast<uint32_t*>(shared_.data());
  std::fill(begin, begin + shared_.size() * sizeof(Line) / sizeof(uint32_t), kPoison);
}

void Engine::check_shared_memory() const {
  auto* bytes = reinterpret_cast<const unsigned char*>(shared_.data());
  for (size_t i = launch_->shared_bytes; i < shared_.size() * sizeof(Line); ++i) {
    unsigned char expected = (kPoison >> i % 4 * 8) & 0xff;
    if (bytes[i] != expected) {
      throw error(
          "wrote byte " + std::to_string(i) + " of " + std::to_string(launch_->shared_bytes) +
          " bytes of dynamic shared memory");
    }
  }
}

}  // namespace emulator
