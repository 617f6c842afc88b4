// Resampling of particles over exact integers. The masses of n weights (mass.h), laid end to end, are an interval of
// `total` units; N positions in it choose N ancestors, each the particle whose stretch of the interval it falls into.
//
// Systematic (Kitagawa 1996; Carpenter, Clifford and Fearnhead 1999) and stratified (Kitagawa 1996) resampling put one
// position into each of N equal strata, residual resampling (Liu and Chen 1998) copies floor(N p) times and draws the
// rest. Positions are fractions total * k / N; here they stand as a quotient and a remainder, so that nothing is
// rounded.
#pragma once

#include <cstdint>

#include "core/sampling/alias.h"
#include "core/sampling/mass.h"
#include "core/sampling/philox.h"

namespace ste_ops {

struct Quotient {
  uint64_t whole, rest;
};

// (high * 2^64 + low) / divisor, where high < divisor < 2^63.
STE_HD Quotient divide(uint64_t high, uint64_t low, uint64_t divisor) {
  if (high == 0) return {low / divisor, low % divisor};
  uint64_t whole = 0;
  for (int bit = 63; bit >= 0; --bit) {
    high = high << 1 | (low >> bit & 1);
    whole = whole << 1 | uint64_t(high >= divisor);
    high -= high >= divisor ? divisor : 0;
  }
  return {whole, high};
}

// count equal strata of `total` units; stratum k begins k * total / count units in.
struct Strata {
  uint64_t total = 0, count = 1, whole = 0, rest = 0, inverse = 0;

  Strata() = default;
  STE_HD Strata(uint64_t total, uint64_t count)
      : total(total), count(count), whole(total / count), rest(total % count), inverse(~uint64_t(0) / count) {}

  // The units before stratum k, and what is left over in parts of 1 / count.
  STE_HD Quotient begin(uint64_t k) const {
    Quotient left = divide(multiply_high(k, rest), k * rest, count);
    return {k * whole + left.whole, left.rest};
  }
  STE_HD Quotient next(Quotient begin) const {
    uint64_t left = begin.rest + rest, carry = left >= count;
    return {begin.whole + whole + carry, left - choose(carry != 0, count, 0)};
  }

  // The unit that 64 random bits choose of a stratum: floor((k + random / 2^64) * total / count), exactly, because to
  // round down before a division by an integer and after it is to round down once.
  STE_HD uint64_t unit(Quotient begin, uint64_t random) const {
    uint64_t x = begin.rest + multiply_high(random, total);
    // x < 2^63, so the estimate is the quotient or one less.
    uint64_t estimate = multiply_high(x, inverse);
    return begin.whole + estimate + uint64_t(x - estimate * count >= count);
  }
};

// Where the N positions of a row lie, ascending: all at one place of their strata (systematic), each at its own
// (stratified).
struct Positions {
  Strata strata;
  uint64_t seed = 0, row = 0, random = 0;
  bool each = false;

  STE_HD static Positions systematic(uint64_t total, uint64_t count, uint64_t seed, uint64_t row) {
    return {Strata(total, count), seed, row, low_bits(philox_draw(seed, row, 0)), false};
  }
  STE_HD static Positions stratified(uint64_t total, uint64_t count, uint64_t seed, uint64_t row) {
    return {Strata(total, count), seed, row, 0, true};
  }
  // 0, 1, ..., count - 1.
  STE_HD static Positions counting(uint64_t count) { return {Strata(count, count), 0, 0, 0, false}; }

  STE_HD uint64_t operator()(uint64_t k) const {
    return strata.unit(strata.begin(k), each ? low_bits(philox_draw(seed, row, k)) : random);
  }
};

// The first i in [begin, end) with up_to[i] > unit, else end.
STE_HD int64_t first_above(const uint64_t* up_to, int64_t begin, int64_t end, uint64_t unit) {
  while (begin < end) {
    int64_t middle = begin + (end - begin) / 2;
    if (up_to[middle] > unit) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// Ancestors of ascending positions are a merge of the positions with the sums `up_to` of n masses: particle i is behind
// position k where up_to[i] <= position(k). After `done` elements the merge stands before particle i and position
// done - i; returns i, for the stretches that threads take (the merge path of Green, McColl and Bader, ICS 2012).
template <class P>
STE_HD int64_t seek_ancestor(const uint64_t* up_to, int64_t n, const P& position, int64_t count, int64_t done) {
  int64_t low = done > count ? done - count : 0, high = done < n ? done : n;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    bool behind = up_to[middle] <= position(uint64_t(done - 1 - middle));
    low = behind ? middle + 1 : low;
    high = behind ? high : middle;
  }
  return low;
}

// N p of a mass: floor(N mass / total) copies and N mass - copies * total units of residue, below `total`. N is below
// `total` (both exponents of mass.h see to 2^47 units and more).
struct Copies {
  uint64_t total, count, ratio;
  STE_HD Copies(uint64_t total, uint64_t count) : total(total), count(count), ratio(divide(count, 0, total).whole) {}

  STE_HD Quotient of(uint64_t mass) const {
    uint64_t copies = multiply_high(mass, ratio);  // or one less than there are
    uint64_t residue = mass * count - copies * total, more = residue >= total;
    return {copies + more, residue - choose(more != 0, total, 0)};
  }
};

// The residues laid end to end fill `rest` buckets of `total` units, rest = N - the copies of all. They end in the
// middle of a bucket or at its end: bucket b and 0 < units <= total of it; before the first residue that is bucket -1,
// full.
struct Bucket {
  int64_t number;
  uint64_t units;

  // From the masses and the copies of the particles so far.
  STE_HD static Bucket after(uint64_t mass, uint64_t copied, Copies copies) {
    Quotient all = divide(multiply_high(mass, copies.count), mass * copies.count, copies.total);
    int64_t full = int64_t(all.whole) - int64_t(copied);
    return {all.rest == 0 ? full - 1 : full, all.rest == 0 ? copies.total : all.rest};
  }
  STE_HD Bucket plus(uint64_t residue, uint64_t total) const {
    uint64_t sum = units + residue, over = sum > total;
    return {number + int64_t(over), sum - choose(over != 0, total, 0)};
  }
};

// One draw of the rest: 64 random bits choose a bucket and 64 others a unit of it. `first[b]` is the first particle
// whose residue ends in bucket b or behind it, and `units[i]` the units that particle i ends at.
struct ResidueDraw {
  uint64_t bucket, unit;
  ResidueDraw() = default;
  STE_HD ResidueDraw(uint64_t low, uint64_t high, uint64_t rest, uint64_t total)
      : bucket(multiply_high(low, rest)), unit(multiply_high(high, total)) {}

  STE_HD int64_t particle(uint64_t rest, const uint64_t* units, const int64_t* first, int64_t n) const {
    return first_above(units, first[bucket], bucket + 1 < rest ? first[bucket + 1] : n, unit);
  }
};

}  // namespace ste_ops
