// Draws by the inverse of the cumulative distribution, over integer masses: to draw a few times from many weights,
// where building a table would take most of the time.
#pragma once

#include "core/sampling/alias.h"

namespace ste_ops {

// Weights for each draw: from here on passing over them costs less than a table does (docs/decisions/sampling.md).
constexpr int64_t kWeightsPerDraw = 16;

// Whether num_samples draws from n weights go without a table. It asks nothing else, so that the draws are the same on
// every device and at any number of threads.
STE_HD bool few_draws(int64_t n, int64_t num_samples) { return num_samples <= n / kWeightsPerDraw; }

// floor(x * total / 2^128) for the 128 random bits x: each value below `total` is taken for floor or ceil(2^128 /
// total) of the x, so the probability of a stretch of values is within 2^-128 of the exact one.
STE_HD uint64_t uniform_below(const Random128& random, uint64_t total) {
  uint64_t low = low_bits(random) * total;
  uint64_t carry = low + multiply_high(high_bits(random), total) < low;
  return multiply_high(low_bits(random), total) + carry;
}

}  // namespace ste_ops
