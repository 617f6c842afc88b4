// The check of what operators have found of rows of weights, prepared for the backends.
#pragma once

#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// The states of rows (csrc/registration.cpp) and a copy of them to fill.
struct RowStates {
  static constexpr const char* op = "refuse_states";
  Weights weights;
  Tensor states, out;
};

inline RowStates prepare_row_states(const Tensor& x, const Tensor& states) {
  constexpr const char* op = RowStates::op;
  const Weights weights(op, x);
  STE_CHECK(
      states.scalar_type() == ScalarType::Long && states.is_contiguous() && states.numel() == weights.rows, op,
      ": states must hold one int64 for each of ", weights.rows, " rows");
  STE_CHECK(states.device() == x.device(), op, ": states and weights must be on one device");
  return {weights, states, new_like(states)};
}

}  // namespace ste_ops
