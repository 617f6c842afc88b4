// Weights as integers. A weight w becomes round(w * 2^exponent), half to even and at least 1 where w > 0, computed on
// its bits: sums of integers are exact in any order, so every backend and any number of threads agree on them, and no
// mode of the floating-point unit (denormals, rounding) has a say.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace ste_ops {

// Most categories of one distribution. Below it all arithmetic here and in alias.h stays within 64 bits.
constexpr int64_t kMaxCategories = int64_t(1) << 36;

STE_HD int bit_width(uint64_t x) {
  int width = 0;
  for (int half = 32; half > 0; half /= 2) {
    bool high = x >> half != 0;
    width += high ? half : 0;
    x = high ? x >> half : x;
  }
  return width + (x != 0);
}

// The layout of a floating type.
template <class T>
struct Format {
  static constexpr int bits = 8 * sizeof(T);
  static constexpr int fraction = sizeof(T) == 8 ? 52 : 23;
};
template <>
struct Format<Half> {
  static constexpr int bits = 16, fraction = 10;
};
template <>
struct Format<BFloat16> {
  static constexpr int bits = 16, fraction = 7;
};

// Everything below takes a weight as its bits.

// The bits below the sign. Magnitudes order as the absolute values do, and infinity and NaN come last.
template <class T>
STE_HD bits_t<T> magnitude(bits_t<T> x) {
  return x & bits_t<T>((uint64_t(1) << (Format<T>::bits - 1)) - 1);
}

template <class T>
STE_HD bool is_negative(bits_t<T> x) {
  return x > bits_t<T>(uint64_t(1) << (Format<T>::bits - 1));
}

template <class T>
constexpr bits_t<T> kInfinity =
    bits_t<T>((uint64_t(1) << (Format<T>::bits - 1)) - (uint64_t(1) << Format<T>::fraction));

// Finite and not below zero; -0 counts as zero.
template <class T>
STE_HD bool is_weight(bits_t<T> x) {
  return (magnitude<T>(x) < kInfinity<T>)&!is_negative<T>(x);
}

// A finite magnitude as an integer below 2^53 times a power of two.
struct Scaled {
  uint64_t integer;
  int64_t exponent;
};

template <class T>
STE_HD Scaled scaled(uint64_t magnitude) {
  constexpr int fraction = Format<T>::fraction;
  constexpr int bias = (1 << (Format<T>::bits - fraction - 2)) - 1;
  int64_t field = int64_t(magnitude >> fraction);
  uint64_t normal = field != 0;
  uint64_t integer = (magnitude & ((uint64_t(1) << fraction) - 1)) | normal << fraction;
  return {integer, field + int64_t(1 - normal) - bias - fraction};
}

STE_HD uint64_t clamp_shift(int64_t shift) { return uint64_t(shift < 0 ? 0 : shift > 63 ? 63 : shift); }

// round(x * 2^exponent); the caller chooses the exponent so that the result is below 2^63.
STE_HD uint64_t round_scaled(Scaled x, int64_t exponent) {
  int64_t left = x.exponent + exponent;
  uint64_t value = x.integer << clamp_shift(left);
  uint64_t right = clamp_shift(-left);
  uint64_t down = value >> right;
  // What the shift drops, in units of 2^-64. (In two shifts, because one by 64 is undefined.)
  uint64_t dropped = value << 1 << (63 - right);
  return down + uint64_t(dropped + (down & 1) > uint64_t(1) << 63);
}

template <class T>
STE_HD uint64_t coarse_mass(bits_t<T> x, int64_t exponent) {
  return round_scaled(scaled<T>(magnitude<T>(x)), exponent);
}

template <class T>
STE_HD uint64_t mass(bits_t<T> x, int64_t exponent) {
  uint64_t rounded = coarse_mass<T>(x, exponent);
  return rounded + (uint64_t(rounded == 0) & uint64_t(magnitude<T>(x) != 0));
}

// The mass of x where the scale leaves it an integer. It does so for every weight at or above one for which
// is_integer(scaled(magnitude), exponent) holds; for the others the rounding is most of the work.
STE_HD bool is_integer(Scaled x, int64_t exponent) { return x.exponent + exponent >= 0; }

template <class T>
STE_HD uint64_t integer_mass(bits_t<T> x, int64_t exponent) {
  Scaled s = scaled<T>(magnitude<T>(x));
  return s.integer << (uint64_t(s.exponent + exponent) & 63);  // zero may ask for any shift
}

// The masses of n weights are chosen in two stages. Scaled by the first exponent, the largest weight stays so small
// that n of them cannot overflow, and the sum of the coarse masses shows how much room is left.
template <class T>
STE_HD int64_t coarse_exponent(uint64_t largest, int64_t n) {
  Scaled x = scaled<T>(largest);
  return 62 - bit_width(uint64_t(n - 1)) - x.exponent - bit_width(x.integer);
}

// The second exponent brings the sum of n masses between 2^60 and 2^61 + 2 n, whatever the weights. (Past 2^30
// categories whose mass is nearly all in one of them, it may stay below 2^60.)
STE_HD int64_t mass_exponent(int64_t coarse_exponent, uint64_t coarse_sum, int64_t n) {
  // n accounts for the rounding of the coarse masses, which the second scale magnifies.
  return coarse_exponent + 61 - bit_width(coarse_sum + uint64_t(n));
}

// What is known of a row of n weights while their masses are chosen.
struct Row {
  uint64_t largest = 0;       // the greatest magnitude
  uint64_t invalid = 0;       // n - index of the first weight that is negative, NaN or infinite; 0 where none is
  uint64_t coarse_total = 0;  // sum of the coarse masses
  uint64_t total = 0;         // sum of the masses
};

template <class T>
STE_HD int64_t mass_exponent(const Row& row, int64_t n) {
  return mass_exponent(coarse_exponent<T>(row.largest, n), row.coarse_total, n);
}

// The total mass as operators return it: 0 where every weight is zero, -1 - i where weight i is the first invalid one.
STE_HD int64_t total_of(const Row& row, int64_t n) {
  return row.invalid != 0 ? int64_t(row.invalid) - 1 - n : int64_t(row.total);
}

}  // namespace ste_ops
