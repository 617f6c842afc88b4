// Draws by the inverse CDF from rows of at most kShortRow weights, whose masses are summed before each of them. All
// that a row takes is one function, since it takes less than a few calls do.
#pragma once

#include "core/sampling/inverse_cdf.h"
#include "cpu/sampling/masses.h"

namespace ste_ops {
namespace {

// Draws side by side: their random bits fill registers, and their searches overlap.
constexpr int64_t kShortDraws = 8;
// What a weight takes, and a draw.
constexpr double kShortWeightNanoseconds = 2.5, kShortDrawNanoseconds = 12;

// Writes the mass before each weight and returns the total, or what is wrong with the row. `w` holds the row and zeros
// up to a multiple of 16, of which loops over it leave no rest.
template <class T>
STE_OPS_INLINE int64_t sum_short_row(const bits_t<T>* w, int64_t padded, int64_t n, uint64_t* before) {
  Row row;
  if (!inspect<T>(w, padded, row.largest)) row.invalid = uint64_t(n - (std::find_if_not(w, w + n, is_weight<T>) - w));
  if (row.invalid != 0 || row.largest == 0) return total_of(row, n);
  row.coarse_total = coarse_sum<T>(w, padded, coarse_exponent<T>(row.largest, n));
  write_masses<T>(w, padded, mass_exponent<T>(row, n), before);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t mass = before[i];
    before[i] = row.total;
    row.total += mass;
  }
  return total_of(row, n);
}

// stretch_at of each unit, side by side.
STE_OPS_INLINE void find_items(const uint64_t* before, int64_t n, const uint64_t* units, int64_t* items) {
  for (int64_t k = 0; k < kShortDraws; ++k) items[k] = 0;
  for (int64_t count = n; count > 1; count -= count / 2) {
    const int64_t half = count / 2;
    STE_LANES for (int64_t k = 0; k < kShortDraws; ++k) {
      items[k] += int64_t(choose(before[items[k] + half] <= units[k], uint64_t(half), 0));
    }
  }
}

// Returns the total.
template <class T>
STE_OPS_CLONES int64_t
draw_from_short_row(const bits_t<T>* weights, int64_t n, uint64_t seed, uint64_t number, int64_t count, int64_t* out) {
  bits_t<T> w[kShortRow];
  uint64_t before[kShortRow];
  const int64_t padded = (n + 15) / 16 * 16;
  for (int64_t i = padded - 16; i < padded; ++i) w[i] = 0;
  std::copy(weights, weights + n, w);
  const int64_t total = sum_short_row<T>(w, padded, n, before);
  if (total <= 0) {
    std::fill(out, out + count, -1);
    return total;
  }
  for (int64_t i = 0; i < count; i += kShortDraws) {
    RandomBlock<kShortDraws> random;
    uint64_t units[kShortDraws];
    int64_t items[kShortDraws];
    philox_block(seed, number, uint64_t(i), random);
    for (int64_t k = 0; k < kShortDraws; ++k) units[k] = uniform_below(random.low[k], random.high[k], uint64_t(total));
    find_items(before, n, units, items);
    std::copy(items, items + std::min(kShortDraws, count - i), out + i);
  }
  return total;
}

}  // namespace
}  // namespace ste_ops
