// Keys for weighted sampling without replacement: the categories in the order of key_i = E_i / w_i, E_i exponentially
// distributed, are drawn one after the other in proportion to what is left of the weights (Efraimidis and Spirakis,
// "Weighted random sampling with a reservoir", 2006). The keys stand here as logarithms, so that no weight overflows
// them, computed by operations that IEEE 754 rounds alike everywhere; the compilers are told not to contract them.
#pragma once

#include <cstdint>

#include "core/sampling/mass.h"

namespace ste_ops {

// 2 atanh(s) for |s| <= 0.172, where what this part of the Taylor series leaves out is less than 2^-60 of it.
STE_HD double twice_atanh(double s) {
  double square = s * s, sum = 1.0 / 21;
  sum = sum * square + 1.0 / 19;
  sum = sum * square + 1.0 / 17;
  sum = sum * square + 1.0 / 15;
  sum = sum * square + 1.0 / 13;
  sum = sum * square + 1.0 / 11;
  sum = sum * square + 1.0 / 9;
  sum = sum * square + 1.0 / 7;
  sum = sum * square + 1.0 / 5;
  sum = sum * square + 1.0 / 3;
  return 2 * (s + s * (square * sum));
}

// log(x * 2^exponent) of a positive normal x.
STE_HD double portable_log(double x, int64_t exponent) {
  uint64_t bits = bit_cast<uint64_t>(x);
  // The mantissa between sqrt(1/2) and sqrt(2): 0x3fe6a09e667f3bcd is sqrt(1/2).
  int64_t power = int64_t(bits - 0x3fe6a09e667f3bcdu) >> 52;
  double mantissa = bit_cast<double>(bits - (uint64_t(power) << 52));
  double scale = double(power + exponent);
  // log(2) in two parts, of which the first has so many zeros at its end that its multiples are exact (fdlibm,
  // e_log.c).
  double low = twice_atanh((mantissa - 1) / (mantissa + 1)) + scale * 1.90821492927058770002e-10;
  return scale * 6.93147180369123816490e-01 + low;
}

// -log(1 - v) at v = (random + 1/2) / 2^64, precise also where v is small: those are the keys that win.
STE_HD double exponential(uint64_t random) {
  double v = (double(random) + 0.5) * 0x1p-64;
  double left = (double(~random) + 0.5) * 0x1p-64;
  return v < 0.25 ? twice_atanh(v / (2 - v)) : -portable_log(left, 0);
}

// log(E / w); infinite for a weight of zero.
template <class T>
STE_HD double exponential_key(bits_t<T> weight, uint64_t random) {
  Scaled w = scaled<T>(magnitude<T>(weight));
  if (w.integer == 0) return bit_cast<double>(kInfinity<double>);
  return portable_log(exponential(random), 0) - portable_log(double(w.integer), w.exponent);
}

}  // namespace ste_ops
