// Draws from alias tables on the CPU.
#pragma once

#include <algorithm>

#include "core/sampling/alias.h"
#include "cpu/sampling/draws.h"

namespace ste_ops {
namespace {

// The columns of a batch are known before the first entry is read, so that the reads overlap.
STE_OPS_INLINE void draw_batch(
    AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start, uint64_t stride, int64_t* out,
    int64_t count) {
  RandomBlock<kDraws> random;
  uint64_t column[kDraws];
  philox_block(seed, row, start, random, stride);
  for (int64_t i = 0; i < count; ++i) {
    column[i] = draw.column(random.low[i]);
    __builtin_prefetch(table + column[i]);
  }
  for (int64_t i = 0; i < count; ++i) out[i] = draw.item(column[i], table[column[i]], random.high[i]);
}

STE_OPS_CLONES void draw_stretch(
    AliasDraw draw, const uint64_t* table, uint64_t seed, uint64_t row, uint64_t start, uint64_t stride, int64_t count,
    int64_t* out) {
  int64_t i = 0;
  for (; i + kDraws <= count; i += kDraws) {
    draw_batch(draw, table, seed, row, start + stride * uint64_t(i), stride, out + i, kDraws);
  }
  // A whole batch of random numbers costs as much as a fifth of a batch one by one.
  if (count - i >= kDraws / 5) {
    return draw_batch(draw, table, seed, row, start + stride * uint64_t(i), stride, out + i, count - i);
  }
  for (; i < count; ++i) {
    Random128 random = philox_draw(seed, row, start + stride * uint64_t(i));
    uint64_t column = draw.column(low_bits(random));
    out[i] = draw.item(column, table[column], high_bits(random));
  }
}

constexpr double kDrawNanoseconds = 3;

// Draws begin .. end - 1 of a row, -1 each where the capacity is not positive.
struct DrawFromTable {
  const uint64_t* table;
  int64_t capacity;
  uint64_t seed, row;
  int64_t n;
  uint64_t start, stride;
  int64_t* out;

  void operator()(int64_t begin, int64_t end) const {
    if (capacity <= 0) {
      std::fill(out + begin, out + end, -1);
      return;
    }
    const uint64_t from = start + stride * uint64_t(begin);
    draw_stretch(AliasDraw(n, capacity), table, seed, row, from, stride, end - begin, out + begin);
  }
};

// Calls draw(begin, end) over so many draws, shared out to threads by whole batches.
template <class Draw>
void share_draws(int64_t draws, const Draw& draw) {
  share_out((draws + kDraws - 1) / kDraws, kDrawNanoseconds * kDraws, [&](int64_t first, int64_t last) {
    draw(first * kDraws, std::min(last * kDraws, draws));
  });
}

}  // namespace
}  // namespace ste_ops
