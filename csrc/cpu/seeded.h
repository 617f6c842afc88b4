// Element-wise loops that draw for every element, in rows of which each has a seed and counts its draws from 0.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/sampling/philox.h"
#include "cpu/loop.h"
#include "cpu/share.h"

namespace ste_ops {

// Draws of one pass over the registers.
constexpr int64_t kDraws = 128;
// An element, with its draw.
constexpr double kDrawnNanoseconds = 3;

// What of a row follows each other in memory: elements [begin, begin + count), the first of them number `first` of the
// row.
struct SeededStretch {
  uint64_t seed, first;
  int64_t begin, count;
};

template <class F>
STE_OPS_INLINE void each_of_batch(F& f, uint64_t seed, uint64_t first, int64_t begin, int64_t count) {
  RandomBlock<kDraws> random;
  philox_block(seed, 0, first, random);
  for (int64_t i = 0; i < count; ++i) f(begin + i, random.low[i]);
}

// Calls f(i, 64 random bits) for the elements of a stretch and returns f, which may have counted something. The functor
// reads and writes through pointers of its own, none into another's output.
template <class F>
STE_OPS_CLONES F each_drawn(F f, SeededStretch stretch) {
  int64_t i = 0;
  for (; i + kDraws <= stretch.count; i += kDraws) {
    each_of_batch(f, stretch.seed, stretch.first + uint64_t(i), stretch.begin + i, kDraws);
  }
  if (i < stretch.count) {
    each_of_batch(f, stretch.seed, stretch.first + uint64_t(i), stretch.begin + i, stretch.count - i);
  }
  return f;
}

// Calls loop(stretch) for all stretches of `rows` rows of `in_row` elements, shared out to threads.
template <class Loop>
void for_each_stretch(const uint64_t* seeds, int64_t rows, int64_t in_row, const Loop& loop) {
  const int64_t numel = rows * in_row;
  share_out((numel + kDraws - 1) / kDraws, kDrawnNanoseconds * kDraws, [&](int64_t batch, int64_t last) {
    int64_t begin = batch * kDraws;
    const int64_t end = std::min(numel, last * kDraws);
    while (begin < end) {
      const int64_t row = begin / in_row, first = begin % in_row, count = std::min(in_row - first, end - begin);
      loop(SeededStretch{seeds[row], uint64_t(first), begin, count});
      begin += count;
    }
  });
}

}  // namespace ste_ops
