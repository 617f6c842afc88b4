// The steps of the binarize family: which level, -1, 0 or 1, the forward gives an element. Their gradients are the
// surrogates.
#pragma once

#include "dtype.h"
#include "macros.h"

namespace ste_ops {

// 1 where x > 0, so 0 at both zeros and at NaN.
struct Heaviside {
  template <class A>
  STE_HD int operator()(A x) const {
    return x > A(0) ? 1 : 0;
  }
};

// +1 where x >= 0, so at both zeros too, and -1 elsewhere, NaN included. Never 0.
struct Sign {
  template <class A>
  STE_HD int operator()(A x) const {
    return x >= A(0) ? 1 : -1;
  }
};

template <class T>
struct Level;
template <>
struct Level<double> {
  static constexpr uint64_t one = 0x3ff0000000000000u, minus_one = 0xbff0000000000000u;
};
template <>
struct Level<float> {
  static constexpr uint32_t one = 0x3f800000u, minus_one = 0xbf800000u;
};
template <>
struct Level<BFloat16> {
  static constexpr uint16_t one = 0x3f80u, minus_one = 0xbf80u;
};
template <>
struct Level<Half> {
  static constexpr uint16_t one = 0x3c00u, minus_one = 0xbc00u;
};

// The bits of a level as a T: three constants, so nothing is converted or rounded.
template <class T>
STE_HD bits_t<T> level_bits(int level) {
  bits_t<T> one = level > 0 ? Level<T>::one : bits_t<T>(0);
  return level < 0 ? Level<T>::minus_one : one;
}

}  // namespace ste_ops
