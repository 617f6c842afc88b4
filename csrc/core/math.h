// exp and log in plain arithmetic, without branches or tables, so that loops over them vectorize on every level and
// give the same bits on every backend. Within 2 units in the last place (tests/test_native.py).
#pragma once

#include <cstdint>

#include "dtype.h"
#include "macros.h"

namespace ste_ops {

template <class A>
struct Floating;

template <>
struct Floating<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  // 1.5 * 2^mantissa: adding it rounds to an integer, which then stands in the lowest bits.
  static constexpr float rounder = 0x1.8p23f;
  static constexpr Int rounder_bits = 0x4b400000, sqrt_half_bits = 0x3f3504f3;
  static constexpr float infinity = __builtin_inff();
  static constexpr float log2_e = 0x1.715476p0f;
  // ln 2 in two parts; an exponent times the first is exact.
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  // Above it exp overflows soon; below its negative exp is 0, where it would soon be denormal.
  static constexpr float exp_limit = 87.0f;
};

template <>
struct Floating<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double rounder = 0x1.8p52;
  static constexpr Int rounder_bits = 0x4338000000000000, sqrt_half_bits = 0x3fe6a09e667f3bcd;
  static constexpr double infinity = __builtin_inf();
  static constexpr double log2_e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double exp_limit = 708.0;
};

// first + second z + ... by Horner's rule.
template <class A>
STE_HD A polynomial(A, A last) {
  return last;
}

template <class A, class... Rest>
STE_HD A polynomial(A z, A first, Rest... rest) {
  return polynomial(z, rest...) * z + first;
}

// The series of (e^r - 1 - r) / r^2, as far as |r| <= ln(2) / 2 needs it.
STE_HD float exp_tail(float r) {
  return polynomial(r, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040);
}

STE_HD double exp_tail(double r) {
  return polynomial(r, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800);
}

// e^x; 0 below -exp_limit and infinite above exp_limit, NaN at NaN.
template <class A>
STE_HD A portable_exp(A x) {
  using F = Floating<A>;
  A rounded = x * F::log2_e + F::rounder;
  A n = rounded - F::rounder;
  A r = (x - n * F::ln2_high) - n * F::ln2_low;
  A value = (r + r * r * exp_tail(r)) + A(1);
  // The bits of the rounder below the exponent's are 0, so the shift leaves 2^n. Unsigned, for it may shift a sign out.
  A scale = bit_cast<A>(bits_t<A>(bit_cast<bits_t<A>>(rounded) + bits_t<A>(F::bias)) << F::mantissa);
  value = value * scale;
  value = x < -F::exp_limit ? A(0) : value;
  return x > F::exp_limit ? F::infinity : value;
}

// The series of (atanh(s) / s - 1) / s^2 in z = s^2, as far as |s| <= (sqrt(2) - 1) / (sqrt(2) + 1) needs it.
STE_HD float atanh_tail(float z) { return polynomial(z, 1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9, 1.0f / 11); }

STE_HD double atanh_tail(double z) {
  return polynomial(z, 1.0 / 3, 1.0 / 5, 1.0 / 7, 1.0 / 9, 1.0 / 11, 1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21,
                    1.0 / 23);
}

// ln x of a positive normal number; NaN at NaN. x = 2^n m with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m-1)/(m+1)).
template <class A>
STE_HD A portable_log(A x) {
  using F = Floating<A>;
  using Int = typename F::Int;
  Int bits = bit_cast<Int>(x);
  Int exponent = (bits - F::sqrt_half_bits) >> F::mantissa;
  A m = bit_cast<A>(Int(bits - exponent * (Int(1) << F::mantissa)));
  // An integer to a floating number without a conversion, which double has on AVX-512 alone.
  A n = bit_cast<A>(Int(exponent + F::rounder_bits)) - F::rounder;
  A f = m - A(1);
  A s = f / (A(2) + f);
  A z = s * s;
  // 2 atanh(s) = f - s (f - 2 z tail), for 2 s = f - s f: the large part is f, which is exact.
  A tail = A(2) * z * atanh_tail(z);
  A value = n * F::ln2_high + (f - (s * (f - tail) - n * F::ln2_low));
  return x != x ? x : value;
}

}  // namespace ste_ops
