// How partial results join (combine), and where a reduction starts (identity). A partial result within one block is a
// State<A>, A being the arithmetic of the elements; between blocks, and at the end, it is a Total.
#pragma once

#include "core/macros.h"

namespace ste_ops {

// Sums, in float64.
struct Additive {
  template <class A>
  using State = double;
  using Total = double;
  STE_HD static double identity() { return 0; }
  STE_HD static double combine(double a, double b) { return a + b; }
};

// Two sums that one pass makes.
struct Pair {
  double first, second;
};

struct AdditivePair {
  template <class A>
  using State = Pair;
  using Total = Pair;
  STE_HD static Pair identity() { return {0, 0}; }
  STE_HD static Pair combine(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
};

// The largest of numbers that are not negative. A NaN wins over every number and stays: b > a is false once a is NaN.
struct Maximum {
  template <class A>
  using State = A;
  using Total = double;
  STE_HD static double identity() { return 0; }
  template <class A>
  STE_HD static A combine(A a, A b) {
    return (b > a) | (b != b) ? b : a;
  }
};

}  // namespace ste_ops
