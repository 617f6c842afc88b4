// Calls of the binarizers and of their masked backward: checks, layout, allocation, and the types of their loops.
#pragma once

#include "core/binarize/binarizers.h"
#include "ops/binarize/surrogate.h"
#include "ops/mask.h"

namespace ste_ops {

inline void check_at_zero(const char* op, int64_t at_zero) {
  STD_TORCH_CHECK(at_zero == 0 || at_zero == 1, op, ": at_zero must be 0 or 1, got ", at_zero);
}

// x and the tensor to fill, in x's memory order. The mask is empty where the surrogate saves none.
struct Binarized {
  Tensor mask, out, x;
  const double* parameters;  // stand in for a, b and a threshold where they are not null
};

inline Binarized prepare_binarize(
    const char* op, const Tensor& x, int64_t surrogate, const std::optional<Tensor>& parameters, int64_t count = 2) {
  const bool masked = saves_of(op, surrogate) == Saves::mask;
  // The small one first: a heap that serves them in this order finds the same place for `out` at every step.
  Tensor mask = masked ? new_mask(x) : empty_vector(0, ScalarType::Byte, x);
  Tensor out = new_like(x);
  return {mask, out, in_layout_of(out, x), numbers_of(op, "parameters", parameters, count, x)};
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

// The gradient in row-major order: the Function permutes that of a tensor which was not.
inline Elementwise prepare_binarize_backward(const Tensor& grad, const Tensor& mask) {
  check_mask("binarize_backward", "mask", mask, grad);
  return Elementwise(row_major(grad));
}

}  // namespace ste_ops
