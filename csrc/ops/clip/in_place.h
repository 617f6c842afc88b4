// The prepared calls of what clips a tensor list in place.
#pragma once

#include "ops/clip/norm.h"

namespace ste_ops {

inline NonFinite checked_nonfinite(const char* op, int64_t value) {
  STE_CHECK(
      value >= 0 && value <= int64_t(NonFinite::kZero), op,
      ": nonfinite must be 0 (propagate), 1 (skip) or 2 (zero), got ", value);
  return NonFinite(value);
}

// clip_grad_norm_(grads, max_norm, norm_type, nonfinite, each)
struct ClipGradNorm {
  TensorList grads;
  double max_norm, p;
  NonFinite nonfinite;
  bool each;

  ClipGradNorm(StableIValue* stack, Placed placed)
      : grads("clip_grad_norm_", stack[0], Access::kWrite, placed),
        max_norm(to<double>(stack[1])),
        p(checked_norm_type("clip_grad_norm_", to<double>(stack[2]))),
        nonfinite(checked_nonfinite("clip_grad_norm_", to<int64_t>(stack[3]))),
        each(to<bool>(stack[4])) {}
};

// clip_grads_with_norm_(grads, total_norm, max_norm, nonfinite). The kernels read the norm where it is: one float32 or
// float64 beside the list.
struct ClipGradsWithNorm {
  Tensor norm;
  TensorList grads;
  double max_norm;
  NonFinite nonfinite;

  ClipGradsWithNorm(StableIValue* stack, Placed placed)
      : norm(to<Tensor>(stack[1])),
        grads(kOp, stack[0], Access::kWrite, placed),
        max_norm(to<double>(stack[2])),
        nonfinite(checked_nonfinite(kOp, to<int64_t>(stack[3]))) {
    STE_CHECK(norm.numel() == 1, kOp, ": total_norm must have one element, got ", norm.numel());
    STE_CHECK(
        norm.scalar_type() == ScalarType::Float || norm.scalar_type() == ScalarType::Double, kOp,
        ": total_norm must be float32 or float64, got ", torch::headeronly::toString(norm.scalar_type()));
    int32_t type;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(norm.get(), &type));
    STE_CHECK(
        type == grads.device_type && norm.get_device_index() == grads.device_index, kOp,
        ": total_norm must be on the gradients' device");
  }

 private:
  static constexpr const char* kOp = "clip_grads_with_norm_";
};

// clip_grad_value_(grads, clip_value)
struct ClipGradValue {
  TensorList grads;
  double clip_value;

  ClipGradValue(StableIValue* stack, Placed placed)
      : grads("clip_grad_value_", stack[0], Access::kWrite, placed), clip_value(to<double>(stack[1])) {}
};

}  // namespace ste_ops
