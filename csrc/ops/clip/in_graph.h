// The prepared calls of the gradients of the clips in the graph: out of place, on dense memory.
#pragma once

#include "ops/clip/norm.h"

namespace ste_ops {

// The loop clamps `numel` elements from x to out, in memory order.
struct ClipValueBackward {
  static constexpr const char* op = "clip_gradient_value_backward";
  double clip_value;
  int64_t numel;
  Tensor out, x;

  ClipValueBackward(const Tensor& grad, double clip_value)
      : clip_value(checked(clip_value)), numel(grad.numel()), out(new_like(grad)), x(in_layout_of(out, grad)) {}

 private:
  static double checked(double clip_value) {
    STE_CHECK(clip_value >= 0, op, ": clip_value must be non-negative, got ", clip_value);
    return clip_value;
  }
};

// The loop clips `rows` rows of `length` elements from x to out: the last row_dims dimensions of grad. The result is
// row-major; the Function permutes what is not.
struct ClipRowsBackward {
  static constexpr const char* op = "clip_gradient_norm_backward";
  double max_norm, p;
  Tensor x, out;
  int64_t length = 1, rows;

  ClipRowsBackward(const Tensor& grad, int64_t row_dims, double max_norm, double norm_type)
      : max_norm(max_norm), p(checked_norm_type(op, norm_type)), x(row_major(grad)), out(new_like(x)) {
    STE_CHECK(
        row_dims >= 0 && row_dims <= grad.dim(), op, ": row_dims must be in [0, ", grad.dim(), "], got ", row_dims);
    for (int64_t d = grad.dim() - row_dims; d < grad.dim(); ++d) length *= grad.size(d);
    rows = length == 0 ? 0 : grad.numel() / length;
  }
};

}  // namespace ste_ops
