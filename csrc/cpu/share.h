// Work shared out to threads where it is worth one parallel region. Where other processes compute, a region that opens
// waits 4 to 12 ms for its second thread, so an operator that takes less than 2 ms opens none
// (docs/decisions/threads.md).
#pragma once

#include <algorithm>

#include "cpu/loop.h"

namespace ste_ops {

// Nanoseconds of work.
constexpr double kWorthARegion = 2e6, kWorthAThread = 2e5;

// Calls f(begin, end) over [0, count), of which each takes about `nanoseconds`.
template <class F>
void share_out(int64_t count, double nanoseconds, const F& f) {
  if (count <= 1 || double(count) * nanoseconds < kWorthARegion) {
    if (count > 0) f(int64_t(0), count);
    return;
  }
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, int64_t(kWorthAThread / nanoseconds)), f);
}

// Calls f(first, last) over rows in one region for all of them. f shares out each row by itself where there are fewer
// rows than threads and each is worth it; within a region that is one thread's work.
template <class F>
void share_rows(int64_t rows, double nanoseconds, const F& f) {
  const bool long_rows = nanoseconds >= kWorthARegion && rows < int64_t(torch::stable::get_num_threads());
  if (long_rows) return f(int64_t(0), rows);
  share_out(rows, nanoseconds, f);
}

}  // namespace ste_ops
