// The first element that is refused, of all that the threads see.
#pragma once

#include <atomic>

#include "cpu/seeded.h"

namespace ste_ops {

// The least of what the threads see.
inline void lower(std::atomic<int64_t>& least, int64_t value) {
  int64_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace ste_ops
