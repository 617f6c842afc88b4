// How partial results join (combine), and where a reduction starts (identity). A partial result within one block is a
// State<A>, A being the arithmetic of the elements; between blocks it is a double.
#pragma once

#include "core/macros.h"

namespace ste_ops {

// Sums, in float64.
struct Additive {
  template <class A>
  using State = double;
  STE_HD static double identity() { return 0; }
  STE_HD static double combine(double a, double b) { return a + b; }
};

// The largest of numbers that are not negative. A NaN wins over every number and stays: b > a is false once a is NaN.
struct Maximum {
  template <class A>
  using State = A;
  STE_HD static double identity() { return 0; }
  template <class A>
  STE_HD static A combine(A a, A b) {
    return (b > a) | (b != b) ? b : a;
  }
};

}  // namespace ste_ops
