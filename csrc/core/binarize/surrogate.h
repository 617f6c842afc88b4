// The surrogates: what stands in for the derivative of a binarizer, which is zero almost everywhere.
//
// A surrogate is one struct here and one line in Surrogates below. It is made of the operator's two parameters, and
// says what the backward needs of the forward:
//   Saves::nothing  the gradient passes unchanged;
//   Saves::mask     one bit an element: passes(x) says where the gradient passes, unchanged but for one factor;
//   Saves::input    x itself: derivative(x) is s'(x), second(x) its own derivative (the curves, curve.h).
// One whose parameters may be learned says how many they are, and in by_parameters(x) what its primitive moves by
// (curve.h); while they are, a mask saves x too, and has a derivative(x).
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "core/binarize/spiking.h"
#include "core/dtype.h"
#include "core/macros.h"
#include "core/ordered.h"

namespace ste_ops {

// 1 everywhere.
struct Identity {
  static constexpr const char* name = "Identity";
  static constexpr Saves saves = Saves::nothing;
  static constexpr int parameters = 0;
  STE_HD Identity(double, double) {}
};

// 1 unless |x| > threshold: the bounds pass, and so does NaN (BinaryNet, arXiv:1602.02830, eq. 4; Larq's ste_sign).
struct Clip {
  static constexpr const char* name = "Clip";
  static constexpr Saves saves = Saves::mask;
  static constexpr int parameters = 1;
  Constant threshold;
  STE_HD Clip(double threshold, double) : threshold(threshold) {}

  template <class A>
  STE_HD bool passes(A x) const {
    return !(magnitude(x) > A(threshold));
  }
  template <class A>
  STE_HD A derivative(A x) const {
    return passes(x) ? A(1) : A(0);
  }
  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    return {passes(x) ? A(0) : odd(x, A(1)), A(0)};
  }
};

// alpha, the factor of the mask, where |x| < 1 / (2 alpha): the bounds do not pass, nor does NaN.
struct Rect {
  static constexpr const char* name = "Rect";
  static constexpr Saves saves = Saves::mask;
  static constexpr int parameters = 1;
  Constant bound;
  double alpha;
  STE_HD Rect(double alpha, double) : bound(0.5 / alpha), alpha(alpha) {}

  template <class A>
  STE_HD bool passes(A x) const {
    return magnitude(x) < A(bound);
  }
  template <class A>
  STE_HD A derivative(A x) const {
    return passes(x) ? A(alpha) : A(0);
  }
  template <class A>
  STE_HD ByParameters<A> by_parameters(A x) const {
    return {passes(x) ? x : A(0), A(0)};
  }
};

// The position in this list is the surrogate's number in every schema; Python reads the names from it when it loads.
using Surrogates = std::tuple<
    Identity, Clip, Rect, ApproxSign, Swish, Tanh, ReSTE, Sigmoid, ATan, FastSigmoid, SoftSign, PiecewiseQuadratic,
    PiecewiseExp, Erf>;

// Calls f with the surrogate of that number; false where there is none.
template <class F, size_t... I>
bool visit_surrogate(int64_t number, double a, double b, F&& f, std::index_sequence<I...>) {
  return ((number == int64_t(I) ? (f(std::tuple_element_t<I, Surrogates>(a, b)), true) : false) || ...);
}

template <class F>
bool visit_surrogate(int64_t number, double a, double b, F&& f) {
  return visit_surrogate(number, a, b, std::forward<F>(f), std::make_index_sequence<std::tuple_size_v<Surrogates>>());
}

}  // namespace ste_ops
