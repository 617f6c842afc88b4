// What the surrogates that are curves stand on, and those known from binary nets; those of spiking nets are in
// spiking.h.
//
// derivative(x) is s'(x), second(x) its derivative, which the second order needs. by_parameters(x) are the derivatives
// of the primitive s, the one that is 0 (or does not move) at x = 0, with respect to the parameters: the primitive is
// odd, so they are too.
//
// Everything is written through e^-u with u = |argument| and a u that is capped where it multiplies, so that no finite
// x overflows to infinity or NaN: what is too large for the type ends at 0. A NaN gives NaN. Where s' has a corner its
// second is that of one side, and 0 at a corner at 0.
#pragma once

#include "core/math.h"
#include "core/tanh.h"

namespace ste_ops {

enum class Saves { nothing, mask, input };

// The derivatives of a surrogate's primitive with respect to its parameters; 0 for one that it has not.
template <class A>
struct ByParameters {
  A a, b;
};

// min(u, cap); NaN stays.
template <class A>
STE_HD A capped(A u, A cap) {
  return u > cap ? cap : u;
}

// The odd function of x that is v where x > 0, and 0 at 0.
template <class A>
STE_HD A odd(A x, A v) {
  A signed_v = x < A(0) ? -v : v;
  return x == A(0) ? A(0) : signed_v;
}

// x times a slope that is 0 at infinity. Where s(x) = f(alpha x), f'(alpha x) gives its derivative with respect to
// alpha: without a division, so that it is finite for any alpha.
template <class A>
STE_HD A times_slope(A x, A slope) {
  return slope == A(0) ? A(0) : x * slope;
}

// The logistic function at u >= 0: its derivative e^-u / (1 + e^-u)^2, and 2 sigma(u) - 1 = tanh(u / 2).
template <class A>
struct Logistic {
  A slope, tanh;

  STE_HD explicit Logistic(A u) {
    A e = portable_exp_bounded(-u);
    A sum = A(1) + e;
    slope = e / (sum * sum);
    tanh = (A(1) - e) / sum;
  }
};

// 2 - 2 |x| on |x| <= 1 (Bi-Real Net, arXiv:1808.00278).
struct ApproxSign {
  static constexpr const char* name = "ApproxSign";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 0;
  STE_HD ApproxSign(double, double) {}

  template <class A>
  STE_HD A derivative(A x) const {
    A u = magnitude(x), inside = A(2) - A(2) * u;
    return u > A(1) ? A(0) : inside;
  }

  template <class A>
  STE_HD A second(A x) const {
    A inside = odd(x, A(-2) + (x - x));
    return magnitude(x) > A(1) ? A(0) : inside;
  }
};

// beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)) (BNN+, arXiv:1812.11800; Larq's swish_sign). With the
// logistic function's slope p and t = tanh(beta x / 2), for which p' = -p t and t' = 2 p, that is 2 beta p (2 - u t).
struct Swish {
  static constexpr const char* name = "Swish";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
  double beta;
  STE_HD Swish(double beta, double) : beta(beta) {}

  // Capped where the slope is 0, for it is multiplied by the slope.
  template <class A>
  STE_HD A argument(A x) const {
    return capped(A(beta) * magnitude(x), Floating<A>::exp_limit + A(1));
  }

  template <class A>
  STE_HD A derivative(A x) const {
    // With e = e^-u all of it over one denominator.
    A u = argument(x), e = portable_exp_bounded(-u), sum = A(1) + e;
    return A(2 * beta) * (e * (sum + sum - u * (A(1) - e)) / (sum * sum * sum));
  }

  template <class A>
  STE_HD A second(A x) const {
    A u = argument(x);
    Logistic<A> l(u);
    A inner = l.tanh * (u * l.tanh - A(3)) - A(2) * u * l.slope;
    return odd(x, A(beta) * (A(2 * beta) * (l.slope * inner)));
  }

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    A u = argument(x), e = portable_exp_bounded(-u), sum = A(1) + e;
    return {times_slope(x, A(2) * (e * (sum + sum - u * (A(1) - e)) / (sum * sum * sum))), A(0)};
  }
};

// k t (1 - tanh^2(t x)) (the EDE of IR-Net, arXiv:1909.10788), where 1 - tanh^2(u / 2) is 4 logistic slopes.
struct Tanh {
  static constexpr const char* name = "Tanh";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 2;
  double t, k;
  STE_HD Tanh(double t, double k) : t(t), k(k) {}

  template <class A>
  STE_HD A derivative(A x) const {
    Logistic<A> l(A(2 * t) * magnitude(x));
    return A(k) * (A(4 * t) * l.slope);
  }

  template <class A>
  STE_HD A second(A x) const {
    Logistic<A> l(A(2 * t) * magnitude(x));
    return odd(x, A(-2 * t) * (A(k) * (A(4 * t) * (l.slope * l.tanh))));
  }

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    Logistic<A> l(A(2 * t) * magnitude(x));
    return {times_slope(x, A(k) * (A(4) * l.slope)), portable_tanh(A(t) * x)};
  }
};

// (1/o) |x|^((1-o)/o), the derivative of sign(x) |x|^(1/o), above 0.1 and up to threshold; up to 0.1, where that grows
// without bound, the slope of the chord, 0.1^(1/o) / 0.1; 0 above threshold (ReSTE, ICCV 2023, and its authors' code,
// DravenALG/ReSTE).
struct ReSTE {
  static constexpr const char* name = "ReSTE";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 2;
  static constexpr double flat = 0.1;
  double factor, exponent, threshold;
  STE_HD ReSTE(double power, double threshold)
      : factor(1 / power), exponent((1 - power) / power), threshold(threshold) {}

  template <class A>
  STE_HD A derivative(A x) const {
    A u = magnitude(x);
    // 0.1^(1/o) / 0.1 is 0.1^((1-o)/o): the curve's value without the factor. A NaN stays one.
    bool chord = u <= A(flat);
    A value = (chord ? A(1) : A(factor)) * portable_power(chord ? A(flat) : u, A(exponent));
    return u > A(threshold) ? A(0) : value;
  }

  template <class A>
  STE_HD A second(A x) const {
    A u = magnitude(x);
    A value = odd(x, A(factor) * portable_power(u, A(exponent)) * A(exponent) / u);
    value = u <= A(flat) ? A(0) : value;
    return u > A(threshold) ? A(0) : value;
  }

  // u^(1/o) is the primitive above 0.1, 0.1^(1/o) u / 0.1 below, and its value at the threshold above that.
  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    A u = magnitude(x), held = u > A(threshold) ? A(threshold) : u;
    bool chord = held <= A(flat);
    A root = chord ? A(flat) : held, slope = portable_power(root, A(exponent));
    A by_power = -(held * slope) * (portable_log(root) * A(factor * factor));
    A at_threshold = (chord ? A(1) : A(factor)) * slope;
    return {odd(x, by_power), u > A(threshold) ? odd(x, at_threshold) : A(0)};
  }
};

}  // namespace ste_ops
