// Calls of the binarizers and of their masked backward: checks, layout, allocation, and the types of their loops.
#pragma once

#include <string>

#include "core/binarize/binarizers.h"
#include "ops/binarize/surrogate.h"
#include "ops/mask.h"

namespace ste_ops {

// x and the tensor to fill, in x's memory order. The mask is empty where the surrogate saves none.
struct Binarized {
  Tensor mask, out, x;
  const double* parameters;  // a, b and a threshold, where a tensor holds them
};

inline Binarized prepare_binarize(
    const char* op, const Tensor& x, int64_t surrogate, const double* parameters = nullptr) {
  const bool masked = saves_of(op, surrogate) == Saves::mask;
  // The small one first: a heap that serves them in this order finds the same place for `out` at every step.
  Tensor mask = masked ? new_mask(x) : empty_vector(0, ScalarType::Byte, x);
  Tensor out = new_like(x);
  return {mask, out, in_layout_of(out, x), parameters};
}

// Calls f(Type<T>, surrogate) where there are elements. Where no mask is made the forward does not depend on the
// surrogate, and Identity stands for them all.
template <class F>
void dispatch_binarize(const char* op, const Tensor& x, int64_t surrogate, double a, double b, F&& f) {
  dispatch_elements(op, "x", x, [&](auto type) {
    dispatch_surrogate(op, surrogate, a, b, [&](auto s) {
      if constexpr (decltype(s)::saves == Saves::mask) {
        f(type, s);
      } else {
        f(type, Identity(0, 0));
      }
    });
  });
}

// Calls f with the binarizer of that name, which may be one of a threshold that a tensor holds.
template <class F>
auto with_binarizer(const char* op, const std::string& step, F&& f) {
  if (step == "heaviside") return f(Heaviside());
  if (step == "heaviside_from_zero") return f(HeavisideFromZero());
  if (step == "sign") return f(Sign());
  STE_CHECK(step == "ternary", op, ": step must be heaviside, heaviside_from_zero, sign or ternary, got ", step);
  return f(Ternary{0});
}

// The gradient in row-major order: the Function permutes that of a tensor which was not.
inline Elementwise prepare_binarize_backward(const char* op, const Tensor& grad, const Tensor& mask) {
  check_mask(op, "mask", mask, grad);
  return Elementwise(row_major(grad));
}

}  // namespace ste_ops
