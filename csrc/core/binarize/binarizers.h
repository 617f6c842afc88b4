// The binarizers: where the forward gives an element +1 (above), where -1 (below), and whether a NaN stays one; 0
// elsewhere. Their gradients are the surrogates.
#pragma once

#include "core/dtype.h"
#include "core/macros.h"
#include "core/ordered.h"

namespace ste_ops {

// 1 where x > 0, so 0 at both zeros and at NaN.
struct Heaviside {
  static constexpr bool keeps_nan = false;

  template <class A>
  STE_HD bool above(A x) const {
    return x > A(0);
  }
  template <class A>
  STE_HD bool below(A) const {
    return false;
  }
};

// 1 where x >= 0, so at both zeros; 0 at NaN.
struct HeavisideFromZero {
  static constexpr bool keeps_nan = false;

  template <class A>
  STE_HD bool above(A x) const {
    return x >= A(0);
  }
  template <class A>
  STE_HD bool below(A) const {
    return false;
  }
};

// +1 where x >= 0, so at both zeros too, and -1 elsewhere, NaN included. Never 0.
struct Sign {
  static constexpr bool keeps_nan = false;

  template <class A>
  STE_HD bool above(A x) const {
    return x >= A(0);
  }
  template <class A>
  STE_HD bool below(A x) const {
    return !above(x);
  }
};

// +1 where x > threshold, -1 where x < -threshold, 0 between, bounds included; NaN at NaN.
struct Ternary {
  static constexpr bool keeps_nan = true;
  Constant threshold;

  template <class A>
  STE_HD bool above(A x) const {
    return x > A(threshold);
  }
  template <class A>
  STE_HD bool below(A x) const {
    return x < -A(threshold);
  }
};

// A binarizer with the third of the numbers that a tensor holds, for the one that compares with a number.
template <class Binarizer>
STE_HD Binarizer with_threshold(const Binarizer& binarizer, const double*) {
  return binarizer;
}
STE_HD Ternary with_threshold(const Ternary&, const double* parameters) { return {parameters[2]}; }

// The bits of +1 and -1.
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

// The bits of what a binarizer makes of x; `value` is x as the binarizer compares it. Three constants, so nothing is
// converted or rounded, and no integer is narrower or wider than x, which would have to be spread over the lanes of a
// loop.
template <class T, class Binarizer, class A>
STE_HD bits_t<T> binarized_bits(const Binarizer& binarizer, T x, A value) {
  using U = bits_t<T>;
  U above = binarizer.above(value) ? U(Level<T>::one) : U(0);
  U bits = binarizer.below(value) ? U(Level<T>::minus_one) : above;
  if constexpr (Binarizer::keeps_nan) bits = is_nan(x) ? bit_cast<U>(x) : bits;
  return bits;
}

}  // namespace ste_ops
