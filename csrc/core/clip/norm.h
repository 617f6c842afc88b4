// The p-norm of a list of tensors: what an element adds (term), how partial results join (combine), where a sum starts
// (identity) and how the norm comes out of the total (finish). CPU loops and CUDA kernels only iterate.
//
// Sums are float64. For float32 and narrower that settles p = 1 and p = 2: a square of a float32 is exact in float64
// and lies between 2^-298 and 2^256. A float64 tensor at p = 2, and any tensor at another power, can leave
// float64's range; then the total is taken again, scaled by max|x|, as LAPACK's older dnrm2 does.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/reduction.h"

namespace ste_ops {

// Elements whose sum is one partial result. Fixed, because the partition decides the order of addition.
constexpr int64_t kBlock = 16384;

struct Terms {
  // Whether the total can leave float64's range. The terms of the second look are then scaled(largest magnitude).
  static constexpr bool may_leave_range = false;
  static constexpr bool may_leave_range_in_float64 = false;
  STE_HD double finish(double total) const { return total; }
};

struct Count : Terms, Additive {
  template <class A>
  STE_HD double term(A x) const {
    return x == 0 ? 0.0 : 1.0;
  }
};

struct Sum : Terms, Additive {
  template <class A>
  STE_HD double term(A x) const {
    return magnitude(double(x));
  }
};

// x times a power of two: exact, and no division. The factor brings max|x| to between 2^-74 and 2^23.
struct ScaledSquares : Terms, Additive {
  double factor;
  STE_HD explicit ScaledSquares(double factor) : factor(factor) {}
  STE_HD static ScaledSquares scaled(double largest) {
    uint64_t exponent = 2046 - (bit_cast<uint64_t>(largest) >> 52);
    exponent = exponent < 23 ? 23 : (exponent > 2023 ? 2023 : exponent);
    return ScaledSquares(bit_cast<double>(exponent << 52));
  }
  template <class A>
  STE_HD double term(A x) const {
    double y = double(x) * factor;
    return y * y;
  }
  STE_HD double finish(double total) const { return sqrt(total) / factor; }
};

struct Squares : Terms, Additive {
  static constexpr bool may_leave_range_in_float64 = true;
  STE_HD static ScaledSquares scaled(double largest) { return ScaledSquares::scaled(largest); }
  template <class A>
  STE_HD double term(A x) const {
    return double(x) * double(x);
  }
  STE_HD double finish(double total) const { return sqrt(total); }
};

struct Powers : Terms, Additive {
  static constexpr bool may_leave_range = true;
  double p;
  double scale;
  STE_HD Powers(double p, double scale) : p(p), scale(scale) {}
  STE_HD Powers scaled(double largest) const { return Powers(p, largest); }
  template <class A>
  STE_HD double term(A x) const {
    return pow(magnitude(double(x)) / scale, p);
  }
  STE_HD double finish(double total) const { return scale * pow(total, 1 / p); }
};

struct Largest : Terms, Maximum {
  template <class A>
  STE_HD A term(A x) const {
    return magnitude(x);
  }
};

// As Maximum does it, a NaN wins.
struct Smallest : Terms {
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

// Calls f with the terms of the p-norm. p = 0 counts the elements that are not zero (a NaN is one of them), p = inf and
// -inf are the largest and the smallest magnitude. The caller has refused NaN and the other negative p.
template <class F>
auto visit_norm(double p, F f) {
  if (p == 0) return f(Count{});
  if (p == 1) return f(Sum{});
  if (p == 2) return f(Squares{});
  if (p == INFINITY) return f(Largest{});
  if (p == -INFINITY) return f(Smallest{});
  return f(Powers(p, 1));
}

// Whether a total did leave the range. Terms lost below 2^-1074 matter only where the total is not far above: 2^40 of
// them make 2^-1034, which is 2^-134 of the bound here. A NaN is in range: it is the answer. An infinite or an all-zero
// list is looked at again.
STE_HD bool left_range(double total) { return total == INFINITY || total < 0x1p-900; }

// Whether max|x| is something to scale by; where not, it is the norm.
STE_HD bool has_scale(double largest) { return largest > 0 && largest < INFINITY; }

// torch's coefficient, max_norm / (norm + 1e-6), in float64. Below 1 the tensors are multiplied by it; at 1 and above
// they are left alone; a NaN (from a NaN norm, or inf / inf) is multiplied in, as torch does.
STE_HD double clip_coefficient(double norm, double max_norm) { return max_norm / (norm + 1e-6); }
STE_HD bool leaves_alone(double coefficient) { return coefficient >= 1; }

// What happens to tensors whose norm is NaN or infinite: torch's product, nothing, or zeros.
enum class NonFinite : int32_t { kPropagate, kSkip, kZero };

STE_HD bool is_finite(double x) { return x - x == 0; }

// What a norm asks of the tensors.
struct Scaling {
  enum Action : int32_t { kLeave, kMultiply, kZero } action;
  double coefficient;
};

STE_HD Scaling scaling(double norm, double max_norm, NonFinite nonfinite) {
  const double coefficient = clip_coefficient(norm, max_norm);
  if (!is_finite(norm) && nonfinite != NonFinite::kPropagate) {
    return {nonfinite == NonFinite::kSkip ? Scaling::kLeave : Scaling::kZero, coefficient};
  }
  return {leaves_alone(coefficient) ? Scaling::kLeave : Scaling::kMultiply, coefficient};
}

// Adaptive clipping (Brock et al., arXiv:2102.06171): a unit's gradient is scaled down to clip_factor times the norm of
// its weights, which counts as eps at least. The 1e-6 is the authors' own; 1 leaves the gradient alone.
STE_HD double agc_coefficient(double weight_norm, double grad_norm, double clip_factor, double eps) {
  const double max_norm = (weight_norm < eps ? eps : weight_norm) * clip_factor;
  return grad_norm < max_norm ? 1 : max_norm / (grad_norm < 1e-6 ? 1e-6 : grad_norm);
}

// What a sample's gradient is multiplied by.
STE_HD double sample_coefficient(double norm, double max_norm) {
  const double coefficient = clip_coefficient(norm, max_norm);
  return leaves_alone(coefficient) ? 1 : coefficient;
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
