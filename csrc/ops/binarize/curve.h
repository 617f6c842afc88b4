// Calls of the curves' backward and second order: checks, layout, allocation, and the types of their loops.
#pragma once

#include <initializer_list>
#include <optional>
#include <utility>

#include "ops/binarize/surrogate.h"
#include "ops/checks.h"

namespace ste_ops {

// The incoming gradients, x and the tensor to fill with the product of these and of the curve's derivative at x, all in
// x's memory order. The second gradient of curve_backward is x, which nothing reads as such.
struct CurveCall {
  Tensor out, x, gradients[2];
  const double* parameters;  // stand in for a and b where they are not null
};

inline CurveCall prepare_curve(
    const char* op, std::initializer_list<std::pair<const char*, const Tensor*>> gradients, const Tensor& x,
    int64_t surrogate, const std::optional<Tensor>& parameters) {
  for (auto [name, gradient] : gradients) check_like(op, name, *gradient, "x", x);
  const double* numbers = parameters ? numbers_of(op, "parameters", *parameters, 2, x) : nullptr;
  dispatch_surrogate(op, surrogate, 1, 1, [&](auto s) {
    STE_CHECK(s.saves == Saves::input, op, ": surrogate must be a curve, got ", s.name);
  });
  const Elementwise call(x);
  CurveCall curve{call.out, call.x, {call.x, call.x}, numbers};
  int64_t count = 0;
  for (auto [name, gradient] : gradients) curve.gradients[count++] = in_layout_of(call.out, *gradient);
  return curve;
}

// Calls f(Type<T>, curve) where there are elements.
template <class F>
void dispatch_curve(const char* op, const Tensor& x, int64_t surrogate, double a, double b, F&& f) {
  dispatch_elements(op, "x", x, [&](auto type) {
    dispatch_surrogate(op, surrogate, a, b, [&](auto s) {
      if constexpr (decltype(s)::saves == Saves::input) f(type, s);
    });
  });
}

}  // namespace ste_ops
