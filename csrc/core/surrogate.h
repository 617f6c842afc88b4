// The surrogates: the derivative that stands in for a step's own, which is zero almost everywhere.
//
// A surrogate is one struct here and one line in Surrogates below. It is made of the operator's two parameters and says
// what its backward needs of the forward:
//   Saves::nothing  the gradient passes unchanged;
//   Saves::mask     one bit an element: passes(x) says where the gradient passes, unchanged.
#pragma once

#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>

#include "dtype.h"
#include "macros.h"
#include "ordered.h"

namespace ste_ops {

enum class Saves { nothing, mask };

struct Identity {
  static constexpr const char* name = "Identity";
  static constexpr Saves saves = Saves::nothing;
  STE_HD Identity(double, double) {}
};

// 1 unless |x| > threshold: the bounds pass, and so does NaN (BinaryNet, arXiv:1602.02830, eq. 4; Larq's ste_sign).
struct Clip {
  static constexpr const char* name = "Clip";
  static constexpr Saves saves = Saves::mask;
  Constant threshold;
  STE_HD Clip(double threshold, double) : threshold(threshold) {}

  template <class A>
  STE_HD bool passes(A x) const {
    return !(magnitude(x) > A(threshold));
  }
};

// The position in this list is the surrogate's number in every schema; Python reads the names from it when it loads.
using Surrogates = std::tuple<Identity, Clip>;

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
