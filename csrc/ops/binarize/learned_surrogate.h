// Calls of the backward of a surrogate whose parameters are learned: checks, layout, allocation, and the types of its
// loop.
#pragma once

#include "ops/binarize/surrogate.h"
#include "ops/checks.h"

namespace ste_ops {

// What the backward reads, and the gradients to fill: of_x in x's memory order, and one of each of the two parameters.
struct LearnedCall {
  Tensor of_parameters, of_x, x, grad;
  const double* parameters;
};

inline LearnedCall prepare_learned(
    const char* op, const Tensor& grad, const Tensor& x, int64_t surrogate, const Tensor& parameters) {
  check_like(op, "grad", grad, "x", x);
  dispatch_surrogate(op, surrogate, 1, 1, [&](auto s) {
    STE_CHECK(s.parameters > 0, op, ": surrogate must have parameters, got ", s.name);
  });
  const double* numbers = numbers_of(op, "parameters", parameters, 2, x);
  Tensor of_parameters = empty_vector(2, ScalarType::Double, x);
  if (x.numel() == 0) torch::stable::zero_(of_parameters);
  const Elementwise call(x);
  return {of_parameters, call.out, call.x, in_layout_of(call.out, grad), numbers};
}

// Calls f(Type<T>, surrogate) where there are elements. The numbers of that surrogate are the loop's to read.
template <class F>
void dispatch_learned(const char* op, const Tensor& x, int64_t surrogate, F&& f) {
  dispatch_elements(op, "x", x, [&](auto type) {
    dispatch_surrogate(op, surrogate, 1, 1, [&](auto s) {
      if constexpr (decltype(s)::parameters > 0) f(type, s);
    });
  });
}

}  // namespace ste_ops
