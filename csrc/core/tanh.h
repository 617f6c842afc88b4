// tanh in plain arithmetic, as the functions of math.h: it vectorizes and gives the same bits on every backend.
#pragma once

#include "core/math.h"

namespace ste_ops {

// e^x - 1 for x <= 0, small ones to their last places. x = n ln 2 + r, and 2^n - 1 is exact or all that matters.
template <class A>
STE_HD A portable_expm1(A x) {
  using F = Floating<A>;
  A rounded = x * F::log2_e + F::rounder;
  A n = rounded - F::rounder;
  A r = (x - n * F::ln2_high) - n * F::ln2_low;
  A value = r + r * r * exp_tail(r);
  // n into the exponent of 1. The bits of the rounder that the shift leaves are 0.
  A scale = bit_cast<A>(bits_t<A>(bit_cast<bits_t<A>>(A(1)) + (bit_cast<bits_t<A>>(rounded) << F::mantissa)));
  value = scale * value + (scale - A(1));
  return x < -F::exp_limit ? A(-1) : value;
}

// e^(-2|x|) - 1, from -1 to 0: what the tanh of both signs is made of.
template <class A>
STE_HD A tanh_exponential(A x) {
  return portable_expm1(A(-2) * magnitude(x));
}

// tanh(|x|) of that. Within 4 units in the last place, 1 where the next number below 1 is farther; NaN at NaN.
template <class A>
STE_HD A tanh_of_exponential(A e) {
  return magnitude(e) / (e + A(2));
}

template <class A>
STE_HD A with_sign(A magnitude, A x) {
  using U = bits_t<A>;
  return bit_cast<A>(U(bit_cast<U>(magnitude) | (bit_cast<U>(x) & ~(U(~U(0)) >> 1))));
}

template <class A>
STE_HD A portable_tanh(A x) {
  return with_sign(tanh_of_exponential(tanh_exponential(x)), x);
}

}  // namespace ste_ops
