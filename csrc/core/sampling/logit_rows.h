// How rows of logits are reduced, the same on every backend and at any number of threads. A tile is 32 lanes, each of
// which takes every 32nd element; the lanes are added as a tree. The tiles of a row go to 8 streams in turn, and the
// streams are added as a tree.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/math.h"

namespace ste_ops {

constexpr int kRowLanes = 32;
constexpr int64_t kRowTile = 1024;
constexpr int kRowStreams = 8;

// Rows of one tensor. Each stretch of per_seed rows has a seed of its own, and its places count from 0.
struct RowShape {
  int64_t rows, n, per_seed;
  double inverse;
  RowShape(int64_t rows, int64_t n, int64_t per_seed)
      : rows(rows), n(n), per_seed(per_seed), inverse(1 / double(per_seed)) {}

  // row / per_seed, without the call that a division of 64 bits is on a GPU. The product is off by one at most.
  STE_HD int64_t seed(int64_t row) const {
    int64_t quotient = int64_t(double(row) * inverse), rest = row - quotient * per_seed;
    return quotient - int64_t(rest < 0) + int64_t(rest >= per_seed);
  }
  STE_HD int64_t row_of_seed(int64_t row) const { return row - seed(row) * per_seed; }
  STE_HD uint64_t place(int64_t row) const { return uint64_t(row_of_seed(row)) * uint64_t(n); }
};

// The larger number, or NaN where there is one.
struct MaxOrNaN {
  template <class A>
  STE_HD A operator()(A a, A b) const {
    return (b > a) | (b != b) ? b : a;
  }
};

template <class A>
constexpr A kHuge = A(sizeof(A) == 8 ? 0x1.fffffffffffffp1023 : 0x1.fffffep127);

// Whether a row with this largest logit can be drawn from: not all -inf, none +inf or NaN.
template <class A>
STE_HD bool is_drawable(A largest) {
  return (largest >= -kHuge<A>)&(largest <= kHuge<A>);
}

template <class A>
STE_HD A quiet_nan() {
  return bit_cast<A>(bits_t<A>(sizeof(A) == 8 ? 0x7ff8000000000000u : 0x7fc00000u));
}

// The largest key (the first of equal ones) and its index.
template <class A>
struct Best {
  int64_t index;
  A key;
  STE_HD static Best none() { return {INT64_MAX, -Floating<A>::infinity}; }
};

struct Better {
  template <class A>
  STE_HD Best<A> operator()(Best<A> a, Best<A> b) const {
    return (a.key > b.key) | ((a.key == b.key) & (a.index < b.index)) ? a : b;
  }
};

}  // namespace ste_ops
