// N:M sparsity: which n of m weights are kept.
#pragma once

#include <cmath>
#include <type_traits>

#include "core/dtype.h"
#include "core/macros.h"

namespace ste_ops {

template <class T>
using magnitude_key_t = std::make_signed_t<bits_t<T>>;

// Integers in the order of the magnitudes: both zeros are 0, and every NaN is the same one above infinity. Signed,
// because AVX2 compares no unsigned ones.
template <class T>
STE_HD magnitude_key_t<T> magnitude_key(T x) {
  using K = magnitude_key_t<T>;
  const K infinity = K(bit_cast<bits_t<T>>(store<T>(arithmetic_t<T>(INFINITY))));
  const K key = K(bit_cast<bits_t<T>>(x) & bits_t<T>(~bits_t<T>(0)) >> 1);
  return key > infinity ? K(infinity + 1) : key;
}

// Whether the key at place `other` of its group ranks before the key at `place`: the larger, of equal ones the first.
// Exactly n keys of a group have fewer than n before them.
template <class K>
STE_HD bool ranks_before(K other_key, int64_t other, K key, int64_t place) {
  return other < place ? other_key >= key : other_key > key;
}

// The gradient of a weight that was set to 0.
template <class T>
STE_HD T decayed(T grad, T w, arithmetic_t<T> decay) {
  return store<T>(load(grad) + decay * load(w));
}

}  // namespace ste_ops
