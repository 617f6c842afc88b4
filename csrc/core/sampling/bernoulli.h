// A Bernoulli draw: 1 with probability p, decided on integers so that every backend agrees.
#pragma once

#include <cstdint>

#include "core/sampling/mass.h"

namespace ste_ops {

// The bits of 1.
template <class T>
constexpr bits_t<T> kOne =
    bits_t<T>(((uint64_t(1) << (Format<T>::bits - Format<T>::fraction - 2)) - 1) << Format<T>::fraction);

template <class T>
constexpr bits_t<T> kNaN = bits_t<T>(kInfinity<T> | uint64_t(1) << (Format<T>::fraction - 1));

// A number in [0, 1]; -0 counts as zero.
template <class T>
STE_HD bool is_probability(bits_t<T> p) {
  return (magnitude<T>(p) <= kOne<T>)&!is_negative<T>(p);
}

// `random` is uniform over 64 bits and compared with p * 2^64: exact for p = 0, for p = 1 and wherever p is a multiple
// of 2^-64; any other p is rounded to one, and up to 2^-64 where that would be zero.
template <class T>
STE_HD bool bernoulli(bits_t<T> p, uint64_t random) {
  uint64_t threshold = mass<T>(p, 64);
  // One alone does not fit: its threshold wraps around to 0.
  return (random < threshold) | (p == kOne<T>);
}

}  // namespace ste_ops
