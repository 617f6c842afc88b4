// The uniform quantizers, element by element. A is the arithmetic: float, or double for float64. A NaN propagates.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"
#include "core/reduction.h"
#include "core/sampling/bernoulli.h"

namespace ste_ops {

// From here on every number of the type is whole, and up to twice as much they are 1 apart.
template <class A>
struct Whole;
template <>
struct Whole<float> {
  static constexpr float from = 0x1p23f, largest = 0x1.fffffep127f;
  static constexpr uint32_t sign = 0x80000000u;
};
template <>
struct Whole<double> {
  static constexpr double from = 0x1p52, largest = 0x1.fffffffffffffp1023;
  static constexpr uint64_t sign = 0x8000000000000000u;
};

template <class A>
STE_HD A with_sign_of(A magnitude, A x) {
  return bit_cast<A>(bit_cast<bits_t<A>>(magnitude) | (bit_cast<bits_t<A>>(x) & Whole<A>::sign));
}

// Half to even: the sum leaves no bit for a fraction, and the unit rounds it off. An instruction for this is not in
// the x86-64 baseline; these few vectorize on every level and give the same bits everywhere. -0.25 becomes -0.
template <class A>
STE_HD A round_even(A x) {
  A size = magnitude(x);
  A rounded = with_sign_of((size + Whole<A>::from) - Whole<A>::from, x);
  return size < Whole<A>::from ? rounded : x;
}

struct Round {
  template <class A>
  STE_HD A operator()(A x) const {
    return round_even(x);
  }
};

struct Floor {
  template <class A>
  STE_HD A operator()(A x) const {
    A near = round_even(x);
    return near > x ? near - 1 : near;
  }
};

struct Ceil {
  template <class A>
  STE_HD A operator()(A x) const {
    A near = round_even(x);
    // x in (-1, -0.5) gives -0.
    return near < x ? with_sign_of(magnitude(near + 1), x) : near;
  }
};

struct Trunc {
  template <class A>
  STE_HD A operator()(A x) const {
    A size = magnitude(x), near = round_even(size);
    return size == size ? with_sign_of(near > size ? near - 1 : near, x) : x;
  }
};

// Where x equals a bound it stays, with the sign of its zero; so does a NaN.
template <class A>
STE_HD A clamp(A x, A low, A high) {
  A above = x < low ? low : x;
  return above > high ? high : above;
}

template <class A>
struct Clamp {
  A low, high;
  STE_HD Clamp(double low, double high) : low(A(low)), high(A(high)) {}
  STE_HD A operator()(A x) const { return clamp(x, low, high); }
};

// Away from zero with the probability abs(x) - trunc(abs(x)), which is exact, read to 64 binary places; toward zero
// otherwise. NaN and infinities stay.
template <class A>
STE_HD A stochastic_round(A x, uint64_t random) {
  A size = magnitude(x), low = Trunc()(size);
  bool away = bernoulli<A>(bit_cast<bits_t<A>>(size - low), random);
  A rounded = with_sign_of(low + (away ? A(1) : A(0)), x);
  return size < Whole<A>::from ? rounded : x;
}

// What a quantizer makes of an element, and what its backward needs to know: whether the gradient passes to x, and
// whether it passes to a bound.
template <class A>
struct Quantized {
  A value;
  bool inside, above;
};

// What the elements of a group share.
template <class A>
struct Step {
  A scale, inverse, zero_point;
};

template <class A>
STE_HD bool is_finite(A x) {
  return magnitude(x) <= Whole<A>::largest;
}

template <class A>
STE_HD bool is_positive_and_finite(A x) {
  return (x > 0) & (x <= Whole<A>::largest);
}

// Positive and finite, and so is its reciprocal.
template <class A>
STE_HD bool is_scale(A scale) {
  return is_positive_and_finite(scale) && is_positive_and_finite(A(1) / scale);
}

// An invalid scale, which a host that does not wait for the device cannot refuse, makes every element NaN.
template <class A>
STE_HD Step<A> step_of(A scale, A zero_point) {
  const A inverse = A(1) / scale, nan = bit_cast<A>(kNaN<A>);
  const bool valid = is_positive_and_finite(scale) & is_positive_and_finite(inverse);
  return {valid ? scale : nan, valid ? inverse : nan, zero_point};
}

// (clamp(round(x / scale) + zero_point) - zero_point) * scale, the division by the reciprocal as in torch; the gradient
// passes where the integer that is clamped lies in range.
template <class A>
struct Uniform {
  A low, high;
  STE_HD Uniform(int64_t quant_min, int64_t quant_max) : low(A(quant_min)), high(A(quant_max)) {}

  STE_HD Quantized<A> operator()(A x, const Step<A>& step) const {
    A q = round_even(x * step.inverse) + step.zero_point;
    return {(clamp(q, low, high) - step.zero_point) * step.scale, bool((q >= low) & (q <= high)), false};
  }
};

// A zero point that need not be whole: it is added before the rounding, and what is clamped is whole.
template <class A>
struct Affine {
  Uniform<A> uniform;
  STE_HD Affine(int64_t quant_min, int64_t quant_max) : uniform(quant_min, quant_max) {}

  STE_HD Quantized<A> operator()(A x, const Step<A>& step) const {
    A q = round_even(x * step.inverse + step.zero_point);
    A value = (clamp(q, uniform.low, uniform.high) - step.zero_point) * step.scale;
    return {value, bool((q >= uniform.low) & (q <= uniform.high)), false};
  }
};

// The integers of a learned step, with zero point 0; the gradient passes where x / scale lies strictly between the
// bounds (LSQ, arXiv:1902.08153, eq. 1 to 3).
template <class A>
struct Learned {
  Uniform<A> uniform;
  STE_HD Learned(int64_t quant_min, int64_t quant_max) : uniform(quant_min, quant_max) {}

  STE_HD bool passes(A v) const { return (v > uniform.low) & (v < uniform.high); }

  STE_HD Quantized<A> operator()(A x, const Step<A>& step) const {
    return {uniform(x, step).value, passes(x * step.inverse), false};
  }

  // What a larger scale would change, in steps: the bound from it on, the rounding error between.
  STE_HD A slope(A x, const Step<A>& step, bool& inside) const {
    A v = x * step.inverse;
    inside = passes(v);
    A within = v >= uniform.high ? uniform.high : round_even(v) - v;
    return v <= uniform.low ? uniform.low : within;
  }

  // What an element adds to the gradient of the scale.
  using Reduction = Additive;
  STE_HD static double added(double grad, A slope, bool) { return grad * double(slope); }
};

// The same of x less an offset, which is learned too and added again: the zero point of the step, in units of x (LSQ+,
// arXiv:2004.09576, eq. 3 and 4).
template <class A>
struct LearnedOffset {
  Learned<A> learned;
  STE_HD LearnedOffset(int64_t quant_min, int64_t quant_max) : learned(quant_min, quant_max) {}

  STE_HD static Step<A> centred(const Step<A>& step) { return {step.scale, step.inverse, 0}; }

  STE_HD Quantized<A> operator()(A x, const Step<A>& step) const {
    Quantized<A> quantized = learned(x - step.zero_point, centred(step));
    quantized.value += step.zero_point;
    return quantized;
  }

  STE_HD A slope(A x, const Step<A>& step, bool& inside) const {
    return learned.slope(x - step.zero_point, centred(step), inside);
  }

  // To the gradients of scale and offset: the offset gets what does not pass to x.
  using Reduction = AdditivePair;
  STE_HD static Pair added(double grad, A slope, bool inside) { return {grad * double(slope), inside ? 0.0 : grad}; }
};

// PACT (arXiv:1805.06085): [0, alpha] in `steps` steps. An invalid alpha makes every element NaN.
template <class A>
struct Pact {
  A alpha, up, down;

  STE_HD static bool is_alpha(A alpha, A steps) {
    return is_positive_and_finite(alpha) && is_positive_and_finite(steps / alpha);
  }
  STE_HD static Pact of(A alpha, A steps) {
    A checked = is_alpha(alpha, steps) ? alpha : bit_cast<A>(kNaN<A>);
    return {checked, steps / checked, checked / steps};
  }
  STE_HD Quantized<A> operator()(A x, const Step<A>&) const {
    A clipped = clamp(x, A(0), alpha);
    return {round_even(clipped * up) * down, bool((x >= 0) & (x < alpha)), x >= alpha};
  }
};

// DoReFa (arXiv:1606.06160, eq. 11): [0, 1] in `steps` steps; passes on [0, 1].
template <class A>
struct UnitInterval {
  A steps;
  STE_HD Quantized<A> operator()(A x, const Step<A>&) const {
    return {round_even(clamp(x, A(0), A(1)) * steps) / steps, bool((x >= 0) & (x <= 1)), false};
  }
};

// An element-wise function without a mask, in the same loops.
template <class F, class A>
struct Plain {
  F f;
  STE_HD Quantized<A> operator()(A x, const Step<A>&) const { return {f(x), false, false}; }
};

}  // namespace ste_ops
