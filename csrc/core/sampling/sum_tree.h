// A tree of sums over weights that change: 16 children a node, every sum an integer or a number rounded by integers, so
// that the tree is the same whatever order it was built and updated in, on every backend.
//
// A node keeps for its children the sums of their masses, relative to the largest child: a draw goes down by one
// uniform number a level. Towards its parent a node stands as their total, rounded to 53 bits with an exponent of its
// own. docs/decisions/sum-tree.md has the reasons.
#pragma once

#include <cstdint>

#include "core/sampling/alias.h"
#include "core/sampling/mass.h"
#include "core/sampling/philox.h"

namespace ste_ops {

constexpr int kFanout = 16;
constexpr int kMaxLevels = 9;  // 16^9 = kMaxCategories

// Where the nodes of a tree over n weights lie in its one array. Level 0 are the weights, the last level is the root.
// First come the prefix sums of every level from the root down, kFanout a node; then what each node stands for, from
// the weights up, each level padded with zeros to whole nodes of its parent: the last kFanout words are the sum of all
// and zeros.
struct TreeShape {
  int levels = 0;
  int64_t count[kMaxLevels + 1];
  int64_t prefix[kMaxLevels + 1];
  int64_t value[kMaxLevels + 1];
  int64_t numel = 0;

  STE_HD explicit TreeShape(int64_t n) {
    count[0] = n;
    do {
      count[levels + 1] = (count[levels] + kFanout - 1) / kFanout;
      ++levels;
    } while (count[levels] > 1);
    for (int level = levels; level > 0; --level) {
      prefix[level] = numel;
      numel += count[level] * kFanout;
    }
    for (int level = 1; level <= levels; ++level) {
      value[level] = numel;
      numel += (count[level] + kFanout - 1) / kFanout * kFanout;
    }
  }
};

// A number above zero as (exponent + kWideBias) << 52 | fraction, the leading one left out; 0 is zero. Unlike a double
// it holds the sum of 2^36 of the largest doubles, has no denormals, and orders as the integer does.
constexpr int64_t kWideBias = 1127;  // the smallest exponent, that of 2^52 * 2^-1126, becomes 1
constexpr uint64_t kLeadingOne = uint64_t(1) << 52;

template <class T>
STE_HD uint64_t wide(bits_t<T> weight) {
  Scaled x = scaled<T>(magnitude<T>(weight));
  int64_t shift = 53 - bit_width(x.integer);
  uint64_t word = (uint64_t(x.exponent - shift + kWideBias) << 52) + (x.integer << shift) - kLeadingOne;
  return x.integer == 0 ? 0 : word;
}

// Widens the weights of a node. Where none is denormal, this only moves their bits.
template <class T>
STE_HD void widen(const bits_t<T>* weights, uint64_t* child) {
  constexpr int fraction = Format<T>::fraction;
  constexpr int64_t bias = (1 << (Format<T>::bits - fraction - 2)) - 1;
  uint64_t denormal = 0;
  STE_LANES
  for (int j = 0; j < kFanout; ++j) {
    uint64_t x = magnitude<T>(weights[j]);
    denormal |= uint64_t(x != 0) & uint64_t(x >> fraction == 0);
    child[j] = choose(x != 0, (x << (52 - fraction)) + (uint64_t(kWideBias - bias - 52) << 52), 0);
  }
  if (denormal == 0) return;
  for (int j = 0; j < kFanout; ++j) child[j] = wide<T>(weights[j]);
}

// x / 2^shift to the nearest integer, halves up; shift in [0, 63] and x below 2^63.
STE_HD uint64_t shift_rounded(uint64_t x, uint64_t shift) { return ((x << 1 >> shift) + 1) >> 1; }

// Five bits more than a number has: the masses of children are below 2^58 and their sum below 2^62.
constexpr int kChildBits = 5;

// The prefix sums of a node's children; returns what the node stands for.
STE_HD uint64_t sum_children(const uint64_t* child, uint64_t* prefix) {
  uint64_t largest = 0;
  STE_LANES
  for (int j = 0; j < kFanout; ++j) largest = child[j] > largest ? child[j] : largest;
  const uint64_t exponent = largest >> 52;
  uint64_t mass[kFanout];
  STE_LANES
  for (int j = 0; j < kFanout; ++j) {
    uint64_t shift = exponent - (child[j] >> 52);
    uint64_t integer = ((child[j] & (kLeadingOne - 1)) | kLeadingOne) << kChildBits;
    uint64_t rounded = shift_rounded(integer, shift < 63 ? shift : 63);
    uint64_t positive = rounded > 1 ? rounded : 1;
    mass[j] = child[j] != 0 ? positive : 0;
  }
  uint64_t total = 0;
  for (int j = 0; j < kFanout; ++j) prefix[j] = total += mass[j];
  if (total == 0) return 0;
  // The largest mass has 58 bits, the total at most 62. A carry out of the rounding raises the exponent, as it should.
  const uint64_t dropped =
      kChildBits + (total >> 58 != 0) + (total >> 59 != 0) + (total >> 60 != 0) + (total >> 61 != 0);
  return ((exponent + dropped - kChildBits) << 52) + shift_rounded(total, dropped) - kLeadingOne;
}

// The child that a uniform number falls on: the first whose prefix sum is above the target, so none of mass zero.
STE_HD uint64_t choose_child(const uint64_t* prefix, uint64_t random) {
  uint64_t target = multiply_high(random, prefix[kFanout - 1]), child = 0;
  STE_LANES
  for (int j = 0; j < kFanout; ++j) child += uint64_t(prefix[j] <= target);
  return child;
}

// The random number of a draw at a level: two levels share a Philox block, from the root down.
STE_HD uint64_t tree_stream(const TreeShape& shape, int level) { return uint64_t(shape.levels - level) / 2; }
STE_HD bool tree_high(const TreeShape& shape, int level) { return (shape.levels - level) % 2 != 0; }

// Marks a node whose children have changed, until its sums are taken anew; no number looks like it.
constexpr uint64_t kChanged = ~uint64_t(0);

}  // namespace ste_ops
