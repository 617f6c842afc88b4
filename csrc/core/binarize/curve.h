// The surrogates that are curves: derivative(x) is s'(x) and second(x) its derivative, which the second order needs.
//
// Everything is written through e^-u with u = |argument| and a u that is capped where it multiplies, so that no finite
// x overflows to infinity or NaN: what is too large for the type ends at 0. A NaN gives NaN. Where s' has a corner its
// second is that of one side, and 0 at a corner at 0.
#pragma once

#include "core/math.h"

namespace ste_ops {

enum class Saves { nothing, mask, input };

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
};

// k t (1 - tanh^2(t x)) (the EDE of IR-Net, arXiv:1909.10788), where 1 - tanh^2(u / 2) is 4 logistic slopes.
struct Tanh {
  static constexpr const char* name = "Tanh";
  static constexpr Saves saves = Saves::input;
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
};

// (1/o) |x|^((1-o)/o), the derivative of sign(x) |x|^(1/o), above 0.1 and up to threshold; up to 0.1, where that grows
// without bound, the slope of the chord, 0.1^(1/o) / 0.1; 0 above threshold (ReSTE, ICCV 2023, and its authors' code,
// DravenALG/ReSTE).
struct ReSTE {
  static constexpr const char* name = "ReSTE";
  static constexpr Saves saves = Saves::input;
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
};

// alpha sigma(alpha x) (1 - sigma(alpha x)).
struct Sigmoid {
  static constexpr const char* name = "Sigmoid";
  static constexpr Saves saves = Saves::input;
  double alpha;
  STE_HD Sigmoid(double alpha, double) : alpha(alpha) {}

  template <class A>
  STE_HD A derivative(A x) const {
    return A(alpha) * Logistic<A>(A(alpha) * magnitude(x)).slope;
  }

  template <class A>
  STE_HD A second(A x) const {
    Logistic<A> l(A(alpha) * magnitude(x));
    return odd(x, A(-alpha) * (A(alpha) * (l.slope * l.tanh)));
  }
};

// (alpha / 2) / (1 + (pi alpha x / 2)^2).
struct ATan {
  static constexpr const char* name = "ATan";
  static constexpr Saves saves = Saves::input;
  double half, scale;
  STE_HD ATan(double alpha, double) : half(0.5 * alpha), scale(0x1.921fb54442d18p0 * alpha) {}

  template <class A>
  STE_HD A derivative(A x) const {
    A v = A(scale) * x;
    return A(half) / (A(1) + v * v);
  }

  template <class A>
  STE_HD A second(A x) const {
    A v = A(scale) * magnitude(x);
    // v / (1 + v^2) as 1 / (v + 1 / v), which is 0 and not NaN where v^2 is infinite.
    A part = A(1) / (v + A(1) / v);
    return odd(x, A(-2 * scale) * (derivative(x) * part));
  }
};

// factor / (1 + slope |x|)^2.
template <class A>
STE_HD A inverse_square(A factor, A slope, A x) {
  A part = A(1) / (A(1) + slope * magnitude(x));
  return factor * (part * part);
}

template <class A>
STE_HD A inverse_square_second(A factor, A slope, A x) {
  A part = A(1) / (A(1) + slope * magnitude(x));
  return odd(x, A(-2) * slope * (factor * (part * part * part)));
}

// 1 / (1 + slope |x|)^2 (SuperSpike, arXiv:1705.11146).
struct FastSigmoid {
  static constexpr const char* name = "FastSigmoid";
  static constexpr Saves saves = Saves::input;
  double slope;
  STE_HD FastSigmoid(double slope, double) : slope(slope) {}

  template <class A>
  STE_HD A derivative(A x) const {
    return inverse_square(A(1), A(slope), x);
  }

  template <class A>
  STE_HD A second(A x) const {
    return inverse_square_second(A(1), A(slope), x);
  }
};

// (alpha / 2) / (1 + alpha |x|)^2.
struct SoftSign {
  static constexpr const char* name = "SoftSign";
  static constexpr Saves saves = Saves::input;
  double alpha;
  STE_HD SoftSign(double alpha, double) : alpha(alpha) {}

  template <class A>
  STE_HD A derivative(A x) const {
    return inverse_square(A(0.5 * alpha), A(alpha), x);
  }

  template <class A>
  STE_HD A second(A x) const {
    return inverse_square_second(A(0.5 * alpha), A(alpha), x);
  }
};

// alpha (1 - alpha |x|) on |x| <= 1 / alpha.
struct PiecewiseQuadratic {
  static constexpr const char* name = "PiecewiseQuadratic";
  static constexpr Saves saves = Saves::input;
  double alpha;
  STE_HD PiecewiseQuadratic(double alpha, double) : alpha(alpha) {}

  template <class A>
  STE_HD A derivative(A x) const {
    A u = A(alpha) * magnitude(x), inside = A(alpha) * (A(1) - u);
    return u > A(1) ? A(0) : inside;
  }

  template <class A>
  STE_HD A second(A x) const {
    A u = A(alpha) * magnitude(x), inside = odd(x, A(-alpha * alpha) + (x - x));
    return u > A(1) ? A(0) : inside;
  }
};

// (alpha / 2) exp(-alpha |x|).
struct PiecewiseExp {
  static constexpr const char* name = "PiecewiseExp";
  static constexpr Saves saves = Saves::input;
  double alpha;
  STE_HD PiecewiseExp(double alpha, double) : alpha(alpha) {}

  template <class A>
  STE_HD A derivative(A x) const {
    return A(0.5 * alpha) * portable_exp_bounded(-(A(alpha) * magnitude(x)));
  }

  template <class A>
  STE_HD A second(A x) const {
    return odd(x, A(-alpha) * derivative(x));
  }
};

// (alpha / sqrt(pi)) exp(-(alpha x)^2).
struct Erf {
  static constexpr const char* name = "Erf";
  static constexpr Saves saves = Saves::input;
  double alpha;
  STE_HD Erf(double alpha, double) : alpha(alpha) {}

  template <class A>
  STE_HD A derivative(A x) const {
    A v = A(alpha) * x;
    return A(alpha * 0x1.20dd750429b6dp-1) * portable_exp_bounded(-(v * v));
  }

  template <class A>
  STE_HD A second(A x) const {
    // At the cap the exponential is 0.
    A v = capped(A(alpha) * magnitude(x), A(30));
    return odd(x, A(-2 * alpha) * (v * (A(alpha * 0x1.20dd750429b6dp-1) * portable_exp_bounded(-(v * v)))));
  }
};

}  // namespace ste_ops
