// The p-norm of a list of tensors: what an element adds (term), how partial results join (combine), where a sum starts
// (identity) and how the norm comes out of the total (finish). CPU loops and CUDA kernels only iterate.
//
// Sums are float64. For float32 and narrower that settles p = 1 and p = 2: a square of a float32 is exact in float64
// and lies between 2^-298 and 2^256. A float64 gradient at p = 2, and any gradient at another power, can leave
// float64's range; then the total is taken again over |x| / max|x| (Powers with a scale), as LAPACK's older dnrm2 does.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace ste_ops {

// Elements whose sum is one partial result. Fixed, because the partition decides the order of addition.
constexpr int64_t kBlock = 16384;

enum class NormKind : int { kCount, kSum, kSquares, kPowers, kMaximum, kMinimum };

struct Norm {
  NormKind kind;
  double p;
};

// p = 0 counts the elements that are not zero (a NaN is one of them), p = inf and -inf are the largest and the smallest
// magnitude. The caller has refused NaN and the other negative p.
STE_HD Norm norm_of(double p) {
  if (p == 0) return {NormKind::kCount, p};
  if (p == 1) return {NormKind::kSum, p};
  if (p == 2) return {NormKind::kSquares, p};
  if (p == INFINITY) return {NormKind::kMaximum, p};
  if (p == -INFINITY) return {NormKind::kMinimum, p};
  return {NormKind::kPowers, p};
}

STE_HD float magnitude(float x) {
  return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu);
}
STE_HD double magnitude(double x) {
  return bit_cast<double>(bit_cast<uint64_t>(x) & 0x7fffffffffffffffu);
}

// A partial result within one block is a State<A>, A being the arithmetic of the elements; between blocks it is a
// double.
struct InRange {
  static constexpr bool may_leave_range = false;
  static constexpr bool may_leave_range_in_float64 = false;
};

struct Additive : InRange {
  template <class A>
  using State = double;
  STE_HD static double identity() { return 0; }
  STE_HD static double combine(double a, double b) { return a + b; }
};

struct Count : Additive {
  template <class A>
  STE_HD double term(A x) const {
    return x == 0 ? 0.0 : 1.0;
  }
};

struct Sum : Additive {
  template <class A>
  STE_HD double term(A x) const {
    return magnitude(double(x));
  }
};

struct Squares : Additive {
  static constexpr bool may_leave_range_in_float64 = true;
  template <class A>
  STE_HD double term(A x) const {
    return double(x) * double(x);
  }
};

struct Powers : Additive {
  static constexpr bool may_leave_range = true;
  double p;
  double scale;
  STE_HD Powers(double p, double scale) : p(p), scale(scale) {}
  template <class A>
  STE_HD double term(A x) const {
    double ratio = magnitude(double(x)) / scale;
    return p == 2 ? ratio * ratio : pow(ratio, p);
  }
};

// A NaN wins over every number and stays: b > a is false once a is NaN.
struct Maximum : InRange {
  template <class A>
  using State = A;
  STE_HD static double identity() { return 0; }
  template <class A>
  STE_HD static A combine(A a, A b) {
    return (b > a) | (b != b) ? b : a;
  }
  template <class A>
  STE_HD A term(A x) const {
    return magnitude(x);
  }
};

struct Minimum : InRange {
  template <class A>
  using State = A;
  STE_HD static double identity() { return INFINITY; }
  template <class A>
  STE_HD static A combine(A a, A b) {
    return (b < a) | (b != b) ? b : a;
  }
  template <class A>
  STE_HD A term(A x) const {
    return magnitude(x);
  }
};

// Calls f with the terms of the first pass.
template <class F>
auto visit_norm(Norm norm, F f) {
  switch (norm.kind) {
    case NormKind::kCount:
      return f(Count{});
    case NormKind::kSum:
      return f(Sum{});
    case NormKind::kSquares:
      return f(Squares{});
    case NormKind::kMaximum:
      return f(Maximum{});
    case NormKind::kMinimum:
      return f(Minimum{});
    default:
      return f(Powers{norm.p, 1.0});
  }
}

// Whether a total can leave float64's range at all: known before anything is read.
inline bool may_leave_range(Norm norm, bool has_float64) {
  return visit_norm(
      norm, [&](auto terms) { return terms.may_leave_range || (terms.may_leave_range_in_float64 && has_float64); });
}

// Whether it did. Terms lost below 2^-1074 matter only where the total is not far above: 2^40 of them make 2^-1034,
// which is 2^-134 of the bound here. A NaN is in range: it is the answer. An infinite or an all-zero list is looked at
// again.
STE_HD bool left_range(double total) {
  return total == INFINITY || total < 0x1p-900;
}

STE_HD double finish(Norm norm, double total) {
  if (norm.kind == NormKind::kSquares) return sqrt(total);
  if (norm.kind == NormKind::kPowers) return pow(total, 1 / norm.p);
  return total;
}

// The second look: `largest` is max|x|, and where that is a scale, `total` the sum of (|x| / largest)^p.
STE_HD bool has_scale(double largest) {
  return largest > 0 && largest < INFINITY;
}
STE_HD double finish_scaled(Norm norm, double largest, double total) {
  return has_scale(largest) ? largest * finish(norm, total) : largest;
}

// torch's coefficient, max_norm / (norm + 1e-6), in float64. Below 1 the gradients are multiplied by it; at 1 and above
// they are left alone; a NaN (from a NaN norm, or inf / inf) is multiplied in, as torch does.
STE_HD double clip_coefficient(double norm, double max_norm) {
  return max_norm / (norm + 1e-6);
}
STE_HD bool leaves_alone(double coefficient) {
  return coefficient >= 1;
}

// Clamps to [-bound, bound]; NaN stays.
template <class A>
STE_HD A clamp_magnitude(A x, A bound) {
  return magnitude(x) > bound ? (x < 0 ? -bound : bound) : x;
}

// The bound as an element can hold it, so that a clamped element is not clamped again.
template <class T>
STE_HD arithmetic_t<T> clip_bound(double clip_value) {
  return load(store<T>(arithmetic_t<T>(clip_value)));
}

}  // namespace ste_ops
