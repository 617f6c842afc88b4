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

#include "core/sampling/mass.h"
#include "core/sampling/philox.h"

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
  // A division where the host has a wide one; the emulator runs what a GPU does.
#if defined(__SIZEOF_INT128__) && !defined(__CUDA_ARCH__) && !defined(STE_OPS_EMULATED)
  const uint64_t padding = uint64_t((static_cast<unsigned __int128>(rest) << 64) / total);
  return {capacity, padding + (padding * total != 0)};  // the remainder is that, negated, modulo 2^64
#else
  uint64_t padding = 0;
  for (int bit = 0; bit < 64; ++bit) {
    rest *= 2;
    padding = padding * 2 + (rest >= total);
    rest -= rest >= total ? total : 0;
  }
  return {capacity, padding + (rest != 0)};
#endif
}

// padded(total) is capacity * n exactly: the ceiling in `padding` adds less than total < 2^64 to the product.
STE_HD uint64_t padded(uint64_t prefix, uint64_t padding) { return prefix + multiply_high(prefix, padding); }

STE_HD uint64_t lacks(uint64_t mass, uint64_t capacity) { return mass < capacity ? capacity - mass : 0; }
STE_HD uint64_t exceeds(uint64_t mass, uint64_t capacity) { return mass > capacity ? mass - capacity : 0; }

// What the items before `item` lack of the capacity in all, from their masses and from what they exceed it by: they
// fill `item` columns up to the difference of the two.
STE_HD uint64_t lacked_before(int64_t item, uint64_t mass, uint64_t exceeded, Columns columns) {
  return exceeded + uint64_t(item) * columns.capacity - padded(mass, columns.padding);
}

STE_HD int alias_bits(int64_t n) { return bit_width(uint64_t(n - 1)); }

// The capacity as operators return it: 0 where every weight is zero, -1 - i where weight i is the first invalid one.
STE_HD int64_t capacity_of(const Row& row, int64_t n) {
  if (row.invalid != 0) return int64_t(row.invalid) - 1 - n;
  return int64_t(columns_of(row.total, n).capacity);
}

// a where the condition holds, else b: by arithmetic, because compilers make a choice a branch, and here it would be
// mispredicted every other time.
STE_HD uint64_t choose(bool condition, uint64_t a, uint64_t b) { return b ^ ((a ^ b) & -uint64_t(condition)); }

// The sweep hands out the units that light items (mass <= capacity) lack and heavy items (mass > capacity) exceed by,
// both in index order: the current heavy item fills up light columns until it is drained to the capacity or below, and
// is then itself filled up by the next heavy item. Over prefix sums that is a merge of two ascending sequences. Heavy
// item j is done before light item i where excess[j] <= deficit[i], and each element of the merge completes the column
// of one item; it can begin anywhere (the merge path of Green, McColl and Bader, ICS 2012).
template <class Item>
struct AliasMerge {
  const uint64_t* deficit;  // lights + 1 of them: what light items 0..i-1 lack in all
  const uint64_t* excess;   // heavies + 1 of them: what heavy items 0..j exceed by in all, then kEnd
  const Item* light;        // the items
  const Item* heavy;        // and one more place that may be read
  int64_t lights, heavies;
  uint64_t capacity;
  int bits;
  int64_t i = 0, j = 0;

  static constexpr uint64_t kEnd = ~uint64_t(0);

  // n items: `bounds` holds deficits and then excesses, `items` the light ones and then the heavy ones.
  STE_HD AliasMerge(const uint64_t* bounds, const Item* items, int64_t n, int64_t heavies, uint64_t capacity)
      : AliasMerge(
            bounds, bounds + (n - heavies) + 1, items, items + (n - heavies), n - heavies, heavies, capacity,
            alias_bits(n)) {}

  STE_HD AliasMerge(
      const uint64_t* deficit, const uint64_t* excess, const Item* light, const Item* heavy, int64_t lights,
      int64_t heavies, uint64_t capacity, int bits)
      : deficit(deficit),
        excess(excess),
        light(light),
        heavy(heavy),
        lights(lights),
        heavies(heavies),
        capacity(capacity),
        bits(bits) {}

  // To the state after `done` columns.
  STE_HD void seek(int64_t done) { seek(done, done > heavies ? done - heavies : 0, done < lights ? done : lights); }

  // The same where the light items that are done by then are known to be `low` to `high`.
  STE_HD void seek(int64_t done, int64_t low, int64_t high) {
    while (low < high) {
      int64_t middle = low + (high - low) / 2;
      bool taken = excess[done - 1 - middle] > deficit[middle];
      low = taken ? middle + 1 : low;
      high = taken ? high : middle;
    }
    i = low;
    j = done - low;
  }

  STE_HD void complete_column(uint64_t* table) {
    uint64_t lacked = deficit[i], exceeded = excess[j];
    uint64_t drained = exceeded <= lacked;
    uint64_t item = choose(drained, uint64_t(heavy[j]), uint64_t(light[i]));
    uint64_t lacks = choose(drained, lacked, deficit[i + 1]) - choose(drained, exceeded, lacked);
    uint64_t entry = (capacity - lacks) << bits | uint64_t(heavy[j + int64_t(drained)]);
    table[item] = choose(lacks == 0, item, entry);
    i += int64_t(1 - drained);
    j += int64_t(drained);
  }
};

// Where an item stands in the arrays of AliasMerge, and what stands there. The sums are those before the item.
struct AliasPlace {
  int64_t bound, item;
  uint64_t value;
  STE_HD AliasPlace(
      uint64_t mass, int64_t lights, int64_t index, int64_t heavies_before, uint64_t lacked, uint64_t exceeded,
      uint64_t capacity) {
    bool heavy = mass > capacity;
    item = int64_t(choose(heavy, uint64_t(lights + heavies_before), uint64_t(index - heavies_before)));
    bound = item + heavy;
    value = choose(heavy, exceeded + (mass - capacity), lacked);
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
    uint64_t alias = entry & ((uint64_t(1) << bits) - 1);
    return int64_t(choose(multiply_high(random, capacity) < entry >> bits, column, alias));
  }
};

}  // namespace ste_ops
