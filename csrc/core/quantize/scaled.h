// The quantizers whose scale is a statistic of the tensor itself, element by element. A is the arithmetic: float, or
// double for float64. A NaN makes the statistic of its group NaN, and with it the whole group.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"
#include "core/quantize/uniform.h"
#include "core/tanh.h"

namespace ste_ops {

// A statistic is summed in float64 and rounded once.
template <class A>
STE_HD A mean_of(double total, int64_t members) {
  return A(total / double(members));
}

// A NaN stays.
template <class A>
STE_HD A at_least(A x, A least) {
  return x < least ? least : x;
}

// x where it passes and 0 elsewhere, by its bits: a choice between numbers may become a branch, which stops a loop from
// vectorizing.
template <class A>
STE_HD A passed_where(bool passes, A x) {
  using U = bits_t<A>;
  return bit_cast<A>(U(bit_cast<U>(x) & U(U(0) - U(passes))));
}

// -1, 0 or 1; of a NaN 0.
template <class A>
STE_HD A sign_or_zero(A x) {
  return A(x > A(0)) - A(x < A(0));
}

// -1 or 1, and 1 at both zeros; of a NaN 0.
template <class A>
STE_HD A sign_of(A x) {
  return A(x >= A(0)) - A(x < A(0));
}

// XNOR-Net (arXiv:1603.05279).

// sign(w) * scale, +scale at both zeros.
struct ScaledSign {
  template <class A>
  STE_HD A operator()(A w, A scale) const {
    return w >= A(0) ? scale : -scale;
  }
};

// What an element adds to the gradient of its group's mean: the incoming gradient times sign(w).
template <class A>
STE_HD double xnor_term(A grad, A w) {
  using U = bits_t<A>;
  const U nan = bit_cast<U>(A(INFINITY)) | U(U(1) << (sizeof(A) == 4 ? 22 : 51));
  U bits = bit_cast<U>(grad) ^ (w < A(0) ? U(1) << (8 * sizeof(A) - 1) : U(0));
  return double(bit_cast<A>(U(bits | (w != w ? nan : U(0)))));
}

// The sign passes the gradient where |w| <= 1, times the mean; `slope` is the mean's gradient over the members. The
// derivative of |w| is the sign that is put out, 1 at zeros: zeros alone have no mean, and would never move.
template <class A>
struct XnorGroup {
  A mean, slope;
};

struct XnorBackward {
  template <class A>
  STE_HD A operator()(A grad, A w, XnorGroup<A> group) const {
    return passed_where(!(magnitude(w) > A(1)), grad * group.mean) + sign_of(w) * group.slope;
  }
};

// What a sign with a gradient of its own gets.
struct TimesScale {
  template <class A>
  STE_HD A operator()(A grad, A scale) const {
    return grad * scale;
  }
};

struct MagnitudeAwareSignBackward {
  template <class A>
  STE_HD A operator()(A grad, A w, A scale) const {
    return passed_where(!(magnitude(w) > A(1)), grad * scale);
  }
};

// BitNet b1.58 (arXiv:2402.17764).

// BitNet's code bounds its scales by this.
constexpr double kLeastBitNetScale = 1e-5;

// -1, 0 or 1 times scale.
struct BitNetWeight {
  template <class A>
  STE_HD A operator()(A w, A scale) const {
    return clamp(round_even(w / scale), A(-1), A(1)) * scale;
  }
};

// The step of a group with that largest magnitude.
template <class A>
STE_HD A bitnet_step(double largest, double levels) {
  return at_least(A(largest), A(kLeastBitNetScale)) / A(levels);
}

// levels = 2^(bits - 1) - 1 steps up, one more down.
struct BitNetActivation {
  double levels;
  template <class A>
  STE_HD A operator()(A x, A step) const {
    return clamp(round_even(x / step), A(-levels - 1), A(levels)) * step;
  }
};

// DoReFa-Net (arXiv:1606.06160).

// A smaller maximum divides nothing: the gradient grows as its reciprocal, which float16 holds down to here.
constexpr double kLeastDoReFaMaximum = 0x1p-14;

// What the weights of a group share, from their largest magnitude: tanh(max|w|) is max|tanh(w)|, and 1 stands in for
// one that is too small to divide by. A weight is a maximum where its exponential is the largest weight's.
template <class A>
struct DoReFaScale {
  A exponential, divisor, reciprocal;
  bool divides;

  STE_HD static DoReFaScale of(A largest) {
    A exponential = tanh_exponential(largest), top = tanh_of_exponential(exponential);
    bool divides = !(top < A(kLeastDoReFaMaximum));
    A divisor = divides ? top : A(1);
    return {exponential, divisor, A(1) / divisor, divides};
  }
};

// Eq. 9, in levels = 2^bits - 1 steps. One division for the tanh and what it is divided by.
struct DoReFaWeight {
  double levels;
  template <class A>
  STE_HD A operator()(A w, A exponential, A divisor) const {
    A size = magnitude(exponential) / ((exponential + A(2)) * divisor);
    A unit = with_sign(size > A(1) ? A(1) : size, w);
    return round_even((unit * A(0.5) + A(0.5)) * A(levels)) / A(levels) * A(2) - A(1);
  }
};

// The gradient of t / divisor with the divisor held, t being tanh(w).
template <class A>
STE_HD A dorefa_gradient(A grad, A t, A reciprocal) {
  return (A(1) - t * t) * (grad * reciprocal);
}

// What the divisor's gradient takes from each of `ties` equal maxima, `total` being the sum of grad * tanh(w).
template <class A>
STE_HD A dorefa_taken(const DoReFaScale<A>& scale, double total, double ties) {
  const double divisor = scale.divisor;
  return scale.divides ? A(total / divisor / divisor / ties) : A(0);
}

// The whole gradient of a maximum.
template <class A>
STE_HD A dorefa_gradient_at_maximum(A grad, A t, A reciprocal, A taken) {
  return (A(1) - t * t) * (grad * reciprocal - sign_or_zero(t) * taken);
}

// A weight of smaller magnitude is certainly none of the maxima. From 6 on neighbours begin to share a tanh.
template <class A>
STE_HD A dorefa_candidate(A largest) {
  return A(0.9) * (largest < A(6) ? largest : A(6));
}

}  // namespace ste_ops
