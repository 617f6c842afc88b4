// What both backends do around the check of the states of rows.
#pragma once

#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// `check(Type<T>, weights, rows, n, one_row, states, out)` fills out with the states.
template <class Check>
Tensor refuse_states(const Tensor& weights, const Tensor& states, Check&& check) {
  constexpr const char* op = "refuse_states";
  check_weights(op, weights);
  Distributions shape(weights);
  STD_TORCH_CHECK(
      states.scalar_type() == ScalarType::Long && states.is_contiguous() && states.numel() == shape.rows, op,
      ": states must hold one int64 for each of ", shape.rows, " rows");
  STD_TORCH_CHECK(states.device() == weights.device(), op, ": states and weights must be on one device");
  Tensor out = new_like(states), dense = row_major(weights);
  if (shape.rows == 0) return out;
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    check(
        type, static_cast<const bits_t<T>*>(dense.const_data_ptr()), shape.rows, shape.n, weights.dim() == 1,
        static_cast<const int64_t*>(states.const_data_ptr()), static_cast<int64_t*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ste_ops
