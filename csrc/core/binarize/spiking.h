// The surrogates that are curves and known from spiking nets; curve.h says what their functions are.
#pragma once

#include "core/binarize/curve.h"

namespace ste_ops {

// alpha sigma(alpha x) (1 - sigma(alpha x)).
struct Sigmoid {
  static constexpr const char* name = "Sigmoid";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    return {times_slope(x, Logistic<A>(A(alpha) * magnitude(x)).slope), A(0)};
  }
};

// (alpha / 2) / (1 + (pi alpha x / 2)^2).
struct ATan {
  static constexpr const char* name = "ATan";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    A v = A(scale) * x;
    return {times_slope(x, A(0.5) / (A(1) + v * v)), A(0)};
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
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    // -x |x| / (1 + slope |x|)^2, which ends at -1 / slope^2 and not at 0.
    A part = A(1) / (A(1) / magnitude(x) + A(slope));
    return {odd(x, -(part * part)), A(0)};
  }
};

// (alpha / 2) / (1 + alpha |x|)^2.
struct SoftSign {
  static constexpr const char* name = "SoftSign";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    return {times_slope(x, inverse_square(A(0.5), A(alpha), x)), A(0)};
  }
};

// alpha (1 - alpha |x|) on |x| <= 1 / alpha.
struct PiecewiseQuadratic {
  static constexpr const char* name = "PiecewiseQuadratic";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    A u = A(alpha) * magnitude(x), inside = x * (A(1) - u);
    return {u > A(1) ? A(0) : inside, A(0)};
  }
};

// (alpha / 2) exp(-alpha |x|).
struct PiecewiseExp {
  static constexpr const char* name = "PiecewiseExp";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    return {times_slope(x, A(0.5) * portable_exp_bounded(-(A(alpha) * magnitude(x)))), A(0)};
  }
};

// (alpha / sqrt(pi)) exp(-(alpha x)^2).
struct Erf {
  static constexpr const char* name = "Erf";
  static constexpr Saves saves = Saves::input;
  static constexpr int parameters = 1;
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

  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    A v = A(alpha) * x;
    return {times_slope(x, A(0x1.20dd750429b6dp-1) * portable_exp_bounded(-(v * v))), A(0)};
  }
};

}  // namespace ste_ops
