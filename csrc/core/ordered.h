// float16 and bfloat16 compared as integers, 32 to a 512-bit register, where converting them would take four times as
// long.
//
// A functor written for floats (magnitude(x) > t, x < -t, x >= A(0)) gives the same answers for Ordered<T>: the integer
// is monotone in the number, both zeros are 0, and a comparison with NaN is false. Only x may be NaN.
#pragma once

#include "core/dtype.h"
#include "core/macros.h"

namespace ste_ops {

template <class T>
struct Infinity;
template <>
struct Infinity<Half> {
  static constexpr int16_t bits = 0x7c00;
};
template <>
struct Infinity<BFloat16> {
  static constexpr int16_t bits = 0x7f80;
};

template <class T>
struct Ordered {
  // A constant between two values of T is that gap, so that comparing with it is exact; for a T both ends are itself.
  int16_t floor;
  int16_t ceil;

  static constexpr int16_t infinity = Infinity<T>::bits;

  STE_HD static int16_t key(uint16_t bits) {
    int16_t sign = int16_t(bits) >> 15;
    return int16_t((int16_t(bits & 0x7fffu) ^ sign) - sign);
  }

  STE_HD Ordered(int16_t floor, int16_t ceil) : floor(floor), ceil(ceil) {}
  STE_HD explicit Ordered(T x) : floor(key(x.bits)), ceil(floor) {}
  STE_HD explicit Ordered(float constant) : Ordered(store<T>(constant)) {
    if (load(store<T>(constant)) > constant) --floor;
    if (load(store<T>(constant)) < constant) ++ceil;
  }
  STE_HD explicit Ordered(double constant) : Ordered(float(constant)) {}
  STE_HD explicit Ordered(int constant) : Ordered(float(constant)) {}

  STE_HD Ordered operator-() const { return {int16_t(-ceil), int16_t(-floor)}; }

  STE_HD friend Ordered magnitude(Ordered x) {
    return {int16_t(x.floor < 0 ? -x.floor : x.floor), int16_t(x.ceil < 0 ? -x.ceil : x.ceil)};
  }

  STE_HD friend bool operator>(Ordered x, Ordered t) { return (x.floor > t.floor) & (x.floor <= infinity); }
  STE_HD friend bool operator>=(Ordered x, Ordered t) { return (x.floor >= t.ceil) & (x.floor <= infinity); }
  STE_HD friend bool operator<(Ordered x, Ordered t) { return (x.floor < t.ceil) & (x.floor >= int16_t(-infinity)); }
  STE_HD friend bool operator<=(Ordered x, Ordered t) { return (x.floor <= t.floor) & (x.floor >= int16_t(-infinity)); }
};

// A parameter that elements are compared with: A(constant) is what an A compares with, converted once and not in every
// step of a loop.
struct Constant {
  double value;
  Ordered<Half> half;
  Ordered<BFloat16> bfloat16;

  STE_HD Constant(double value) : value(value), half(value), bfloat16(value) {}
  STE_HD explicit operator double() const { return value; }
  STE_HD explicit operator float() const { return float(value); }
  STE_HD explicit operator Ordered<Half>() const { return half; }
  STE_HD explicit operator Ordered<BFloat16>() const { return bfloat16; }
};

STE_HD bool is_nan(float x) { return x != x; }
STE_HD bool is_nan(double x) { return x != x; }
STE_HD bool is_nan(BFloat16 x) { return int16_t(x.bits & 0x7fffu) > Infinity<BFloat16>::bits; }
STE_HD bool is_nan(Half x) { return int16_t(x.bits & 0x7fffu) > Infinity<Half>::bits; }

// What a functor of comparisons reads from a T.
STE_HD float compare(float x) { return x; }
STE_HD double compare(double x) { return x; }
STE_HD Ordered<BFloat16> compare(BFloat16 x) { return Ordered<BFloat16>(x); }
STE_HD Ordered<Half> compare(Half x) { return Ordered<Half>(x); }

}  // namespace ste_ops
