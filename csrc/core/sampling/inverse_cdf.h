// Draws by the inverse of the cumulative distribution, over integer masses: a few of them, where building a table would
// take most of the time.
#pragma once

#include "core/sampling/alias.h"

namespace ste_ops {

// Rows of so many weights are short: the sums before all of them are at hand, and a draw looks at no weight.
constexpr int64_t kShortRow = 1024;

// The most draws from n weights that cost less from their sums than from a table (docs/decisions/sampling.md). It asks
// nothing but n, so that the draws are the same on every device and at any number of threads.
STE_HD int64_t most_from_sums(int64_t n) { return n > kShortRow ? n / 8 : n > 32 ? n / 2 : 16; }

STE_HD bool few_draws(int64_t n, int64_t num_samples) { return num_samples <= most_from_sums(n); }

// floor(x * total / 2^128) for the 128 random bits x: each value below `total` is taken for floor or ceil(2^128 /
// total) of the x, so the probability of a stretch of values is within 2^-128 of the exact one.
STE_HD uint64_t uniform_below(uint64_t high, uint64_t next, uint64_t total) {
  uint64_t low = high * total;
  uint64_t carry = low + multiply_high(next, total) < low;
  return multiply_high(high, total) + carry;
}

STE_HD uint64_t uniform_below(const Random128& random, uint64_t total) {
  return uniform_below(low_bits(random), high_bits(random), total);
}

// The last of `count` stretches laid end to end that begins at or before the unit, without a branch to mispredict.
STE_HD int64_t stretch_at(const uint64_t* before, int64_t count, uint64_t unit) {
  int64_t low = 0;
  for (; count > 1; count -= count / 2) {
    low += int64_t(choose(before[low + count / 2] <= unit, uint64_t(count / 2), 0));
  }
  return low;
}

}  // namespace ste_ops
