// Alias tables (Walker 1977; Vose 1991) over integer masses, built by the sweep of Huebschle-Schneider and Sanders,
// "Parallel Weighted Random Sampling" (ESA 2019), in a closed form over two prefix sums: a sequential, a threaded and a
// CUDA build write the same table.
//
// A table has a column for each of the n items, all of one capacity C. Column i holds `threshold` units of item i and
// C - threshold units of item `alias`; over all columns an item holds exactly its mass. An entry packs both numbers
// into 63 bits, `threshold << alias_bits(n) | alias`; a column that is full of its own item has threshold 0 and alias
// i.
#pragma once

#include <cstdint>

#include "mass.h"
#include "philox.h"

namespace ste_ops {

STE_HD uint64_t multiply_high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#elif defined(__SIZEOF_INT128__)
  return uint64_t(static_cast<unsigned __int128>(a) * b >> 64);
#else
  uint64_t low_low = (a & 0xffffffffu) * (b & 0xffffffffu), high_low = (a >> 32) * (b & 0xffffffffu);
  uint64_t low_high = (a & 0xffffffffu) * (b >> 32);
  uint64_t middle = (low_low >> 32) + (high_low & 0xffffffffu) + low_high;
  return (a >> 32) * (b >> 32) + (high_low >> 32) + (middle >> 32);
#endif
}

// What is known of a row of n weights while its table is built.
struct Row {
  uint64_t largest = 0;       // the greatest magnitude
  uint64_t invalid = 0;       // n - index of the first weight that is negative, NaN or infinite; 0 where none is
  uint64_t coarse_total = 0;  // sum of the coarse masses
  uint64_t total = 0;         // sum of the masses
};

template <class T>
STE_HD int64_t mass_exponent(const Row& row, int64_t n) {
  return mass_exponent(coarse_exponent<T>(row.largest, n), row.coarse_total, n);
}

// Masses that sum to `total` are padded so that n columns hold them without a rest: an item whose masses stretch from
// prefix p to prefix p' is given padded(p') - padded(p). That adds less than n units in all, spread in proportion to
// mass; an item of mass zero gets none and no item loses any. The total is 0 or at least n, which mass.h sees to.
struct Columns {
  uint64_t capacity;
  uint64_t padding;  // ceil(added * 2^64 / total)
};

STE_HD Columns columns_of(uint64_t total, int64_t n) {
  if (total == 0) return {0, 0};
  uint64_t capacity = (total + uint64_t(n) - 1) / uint64_t(n);
  uint64_t rest = capacity * uint64_t(n) - total;
  uint64_t padding = 0;
  for (int bit = 0; bit < 64; ++bit) {
    rest *= 2;
    padding = padding * 2 + (rest >= total);
    rest -= rest >= total ? total : 0;
  }
  return {capacity, padding + (rest != 0)};
}

// padded(total) is capacity * n exactly: the ceiling in `padding` adds less than total < 2^64 to the product.
STE_HD uint64_t padded(uint64_t prefix, uint64_t padding) { return prefix + multiply_high(prefix, padding); }

STE_HD uint64_t lacks(uint64_t mass, uint64_t capacity) { return mass < capacity ? capacity - mass : 0; }
STE_HD uint64_t exceeds(uint64_t mass, uint64_t capacity) { return mass > capacity ? mass - capacity : 0; }

// What the items before `item` lack of the capacity in all, from their masses and from what they exceed it by: together
// they fill `item` columns but for the two.
STE_HD uint64_t lacked_before(int64_t item, uint64_t mass, uint64_t exceeded, Columns columns) {
  return exceeded + uint64_t(item) * columns.capacity - padded(mass, columns.padding);
}

STE_HD int alias_bits(int64_t n) { return bit_width(uint64_t(n - 1)); }

// The first of values[begin, end) that is above (or, for or_equal, not below) `bound`; the values ascend.
STE_HD int64_t first_above(const uint64_t* values, int64_t begin, int64_t end, uint64_t bound, bool or_equal) {
  while (begin < end) {
    int64_t middle = begin + (end - begin) / 2;
    bool found = or_equal ? values[middle] >= bound : values[middle] > bound;
    end = found ? middle : end;
    begin = found ? begin : middle + 1;
  }
  return begin;
}

// Answers the same question by bisection, for one item on its own.
struct Bisection {
  const uint64_t* values;
  int64_t n;
  STE_HD int64_t above(uint64_t bound) { return first_above(values, 0, n, bound, false); }
  STE_HD int64_t not_below(uint64_t bound) { return first_above(values, 0, n, bound, true); }
};

// Answers it for bounds that ascend, by walking on from the last answer.
struct Walk {
  const uint64_t* values;
  int64_t n;
  int64_t at = -1;
  STE_HD int64_t above(uint64_t bound) {
    if (at < 0) at = first_above(values, 0, n, bound, false);
    while (at < n && values[at] <= bound) ++at;
    return at;
  }
  STE_HD int64_t not_below(uint64_t bound) {
    if (at < 0) at = first_above(values, 0, n, bound, true);
    while (at < n && values[at] < bound) ++at;
    return at;
  }
};

// The capacity as operators return it: 0 where every weight is zero, -1 - i where weight i is the first invalid one.
STE_HD int64_t capacity_of(const Row& row, int64_t n) {
  if (row.invalid != 0) return int64_t(row.invalid) - 1 - n;
  return int64_t(columns_of(row.total, n).capacity);
}

// `deficit[i]` sums what items 0..i lack of the capacity, `excess[i]` what they have beyond it. The sweep pairs the
// two: the units that light items lack are handed out in index order, and heavy items fill them in index order. A light
// item's column is filled by the heavy item whose excess covers the deficits before it; a heavy item that runs dry
// within some light item's deficit is itself filled up by the next heavy one.
template <class Search>
struct AliasColumns {
  const uint64_t* deficit;
  const uint64_t* excess;
  uint64_t capacity;
  int bits;
  Search filler, drained, successor;

  STE_HD AliasColumns(const uint64_t* deficit, const uint64_t* excess, uint64_t capacity, int64_t n)
      : deficit(deficit),
        excess(excess),
        capacity(capacity),
        bits(alias_bits(n)),
        filler{excess, n},
        drained{deficit, n},
        successor{excess, n} {}

  STE_HD uint64_t entry(int64_t i) {
    uint64_t lacked = i == 0 ? 0 : deficit[i - 1];
    uint64_t lacks = deficit[i] - lacked;
    if (lacks != 0) return (capacity - lacks) << bits | uint64_t(filler.above(lacked));
    bool heavy = excess[i] != (i == 0 ? 0 : excess[i - 1]);
    if (!heavy) return uint64_t(i);
    uint64_t overdrawn = deficit[drained.not_below(excess[i])] - excess[i];
    if (overdrawn == 0) return uint64_t(i);
    return (capacity - overdrawn) << bits | uint64_t(successor.above(excess[i]));
  }
};

// One draw: 64 random bits choose a column and 64 others a unit of it. multiply_high(r, m) takes each value below m for
// floor or ceil(2^64 / m) of the r, so every probability is within 2^-64 a column of the exact one.
struct AliasDraw {
  uint64_t n, capacity;
  int bits;
  STE_HD AliasDraw(int64_t n, int64_t capacity) : n(uint64_t(n)), capacity(uint64_t(capacity)), bits(alias_bits(n)) {}
  STE_HD uint64_t column(uint64_t random) const { return multiply_high(random, n); }
  STE_HD int64_t item(uint64_t column, uint64_t entry, uint64_t random) const {
    bool own = multiply_high(random, capacity) < entry >> bits;
    return int64_t(own ? column : entry & ((uint64_t(1) << bits) - 1));
  }
};

}  // namespace ste_ops
