// What the CPU loops over draws share.
#pragma once

#include <atomic>

#include "core/sampling/philox.h"
#include "cpu/loop.h"

namespace ste_ops {

// Draws of one pass over the registers.
constexpr int64_t kDraws = 128;

// The least of what the threads see.
inline void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace ste_ops
