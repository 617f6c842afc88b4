// The steps of the binarize family: which level, -1, 0 or 1, the forward gives an element, and whether a NaN stays one.
// Their gradients are the surrogates.
#pragma once

#include "dtype.h"
#include "macros.h"
#include "ordered.h"

namespace ste_ops {

// 1 where x > 0, so 0 at both zeros and at NaN.
struct Heaviside {
  static constexpr bool keeps_nan = false;

  template <class A>
  STE_HD int operator()(A x) const {
    return x > A(0) ? 1 : 0;
  }
};

// +1 where x >= 0, so at both zeros too, and -1 elsewhere, NaN included. Never 0.
struct Sign {
  static constexpr bool keeps_nan = false;

  template <class A>
  STE_HD int operator()(A x) const {
    return x >= A(0) ? 1 : -1;
  }
};

// +1 where x > threshold, -1 where x < -threshold, 0 between, bounds included; NaN at NaN.
struct Ternary {
  static constexpr bool keeps_nan = true;
  Constant threshold;

  template <class A>
  STE_HD int operator()(A x) const {
    A bound(threshold);
    int positive = x > bound, negative = x < -bound;
    return positive - negative;
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

// The bits of what a step makes of x; `value` is x as the step compares it.
template <class T, class Step, class A>
STE_HD bits_t<T> step_bits(const Step& step, T x, A value) {
  bits_t<T> bits = level_bits<T>(step(value));
  if constexpr (Step::keeps_nan) bits = is_nan(x) ? bit_cast<bits_t<T>>(x) : bits;
  return bits;
}

}  // namespace ste_ops
