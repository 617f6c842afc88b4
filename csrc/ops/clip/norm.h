// The checks of a norm, and the prepared call of total_norm.
#pragma once

#include <cmath>

#include "ops/clip/blocks.h"

namespace ste_ops {

using torch::stable::detail::from;
using torch::stable::detail::to;

inline double checked_norm_type(const char* op, double p) {
  STE_CHECK(p >= 0 || p == -INFINITY, op, ": norm_type must be a non-negative number, inf or -inf, got ", p);
  return p;
}

// Whether the norm's total can leave float64's range on these tensors.
template <class Terms>
constexpr bool may_leave_range(bool has_float64) {
  return Terms::may_leave_range || (Terms::may_leave_range_in_float64 && has_float64);
}

// The norm of all tensors of a list, and that of each where it was asked for; no element where it was not.
struct Norms {
  Tensor total, each;

  Norms(const TensorList& list, bool wants_each)
      : total(empty_strided({}, {}, list.norm_type(), list.any())),
        each(empty_vector(wants_each ? int64_t(list.places.size()) : 0, list.norm_type(), total)) {}

  void give(StableIValue* stack) const {
    stack[0] = from(total);
    stack[1] = from(each);
  }
};

// total_norm(tensors, norm_type, each)
struct TotalNorm {
  TensorList tensors;
  double p;
  bool each;

  TotalNorm(StableIValue* stack, Placed placed)
      : tensors("total_norm", stack[0], Access::kRead, placed),
        p(checked_norm_type("total_norm", to<double>(stack[1]))),
        each(to<bool>(stack[2])) {}
};

}  // namespace ste_ops
