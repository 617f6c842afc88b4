// exp and log in plain arithmetic, without branches or tables, so that loops over them vectorize on every level and
// give the same bits on every backend. Within 2 units in the last place but for powers (tests/native/test_math.py).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

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

// (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2: Chebyshev fits, whose error is a tenth of a unit in the last place of e^r.
STE_HD float exp_tail(float r) {
  return polynomial(r, 0.5f, 0x1.5554dcp-3f, 0x1.55551ap-5f, 0x1.120ba2p-7f, 0x1.6d113cp-10f);
}

STE_HD double exp_tail(double r) {
  return polynomial(
      r, 0x1.0000000000001p-1, 0x1.5555555555556p-3, 0x1.5555555553d4fp-5, 0x1.11111111109adp-7, 0x1.6c16c17893833p-10,
      0x1.a01a01a7c8d47p-13, 0x1.a019b8ef67c6cp-16, 0x1.71de0d9c145d0p-19, 0x1.2891a8c1d838dp-22,
      0x1.af38d53857513p-26);
}

// e^x for x <= exp_limit: 0 below -exp_limit, NaN at NaN.
template <class A>
STE_HD A portable_exp_bounded(A x) {
  using F = Floating<A>;
  using U = bits_t<A>;
  A rounded = x * F::log2_e + F::rounder;
  A n = rounded - F::rounder;
  A r = (x - n * F::ln2_high) - n * F::ln2_low;
  A value = (r + r * r * exp_tail(r)) + A(1);
  // Times 2^n: n into the exponent. The bits of the rounder that the shift leaves are 0. Unsigned, for n has a sign.
  A scaled = bit_cast<A>(U(bit_cast<U>(value) + (bit_cast<U>(rounded) << F::mantissa)));
  scaled = x != x ? x : scaled;
  return x < -F::exp_limit ? A(0) : scaled;
}

// e^x; 0 below -exp_limit and infinite above exp_limit, NaN at NaN.
template <class A>
STE_HD A portable_exp(A x) {
  A value = portable_exp_bounded(x);
  return x > Floating<A>::exp_limit ? Floating<A>::infinity : value;
}

// (atanh(s) / s - 1) / s^2 in z = s^2 on |s| <= (sqrt(2) - 1) / (sqrt(2) + 1): Chebyshev fits again.
STE_HD float atanh_tail(float z) { return polynomial(z, 0x1.55555cp-2f, 0x1.997c28p-3f, 0x1.2ee76cp-3f); }

STE_HD double atanh_tail(double z) {
  return polynomial(
      z, 0x1.5555555555558p-2, 0x1.99999999952abp-3, 0x1.2492492df7663p-3, 0x1.c71c62ddb431bp-4, 0x1.7462b6e311a89p-4,
      0x1.39fe16ad885a7p-4, 0x1.2b5bd9a316a24p-4);
}

// x = 2^n m of a positive normal number, m in [sqrt(1/2), sqrt(2)).
template <class A>
struct Split {
  A n, m;

  STE_HD explicit Split(A x) {
    using F = Floating<A>;
    using Int = typename F::Int;
    Int bits = bit_cast<Int>(x);
    Int exponent = (bits - F::sqrt_half_bits) >> F::mantissa;
    m = bit_cast<A>(Int(bits - exponent * (Int(1) << F::mantissa)));
    // An integer to a floating number without a conversion, which double has on AVX-512 alone.
    n = bit_cast<A>(Int(exponent + F::rounder_bits)) - F::rounder;
  }
};

// ln x of a positive normal number; NaN at NaN. ln m = 2 atanh(s) with s = (m - 1) / (m + 1).
template <class A>
STE_HD A portable_log(A x) {
  using F = Floating<A>;
  Split<A> split(x);
  A f = split.m - A(1);
  A s = f / (A(2) + f);
  A z = s * s;
  // 2 atanh(s) = f - s (f - 2 z tail), for 2 s = f - s f: the large part is f, which is exact.
  A tail = A(2) * z * atanh_tail(z);
  A value = split.n * F::ln2_high + (f - (s * (f - tail) - split.n * F::ln2_low));
  return x != x ? x : value;
}

// x^p of a positive normal number where that is a normal number too; NaN at NaN. Through the logarithm to base 2, whose
// integer part costs no precision of its own: wrong by no more than |p log2 x| + 2 units in the last place.
template <class A>
STE_HD A portable_power(A x, A p) {
  using F = Floating<A>;
  using U = bits_t<A>;
  Split<A> split(x);
  A s = (split.m - A(1)) / (split.m + A(1));
  A z = s * s;
  A y = p * (split.n + (s + s * (z * atanh_tail(z))) * (F::log2_e + F::log2_e));
  A rounded = y + F::rounder;
  A r = (y - (rounded - F::rounder)) * (F::ln2_high + F::ln2_low);
  A value = (r + r * r * exp_tail(r)) + A(1);
  A scaled = bit_cast<A>(U(bit_cast<U>(value) + (bit_cast<U>(rounded) << F::mantissa)));
  return x != x ? x : scaled;
}

}  // namespace ste_ops
