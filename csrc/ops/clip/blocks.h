// What both backends of the clipping family do around their loops.
#pragma once

#include <algorithm>

#include "core/clip/norm.h"
#include "ops/clip/tensor_list.h"

namespace ste_ops {

using torch::stable::detail::from;
using torch::stable::detail::to;

// TensorList divided into blocks of kBlock elements. A block never crosses from one gradient into the next, so a
// gradient's partial results do not depend on its neighbours.
class Blocks {
 public:
  explicit Blocks(const std::vector<TensorData>& gradients) : Blocks(gradients.data(), gradients.size()) {}
  Blocks(const TensorData* gradients, size_t count) : gradients_(gradients), element_(count + 1), block_(count + 1) {
    for (size_t g = 0; g < count; ++g) {
      element_[g + 1] = element_[g] + gradients[g].numel;
      block_[g + 1] = block_[g] + (gradients[g].numel + kBlock - 1) / kBlock;
    }
  }

  size_t count() const { return element_.size() - 1; }
  int64_t numel() const { return element_.back(); }
  int64_t block_count() const { return block_.back(); }
  const TensorData& gradient(size_t g) const { return gradients_[g]; }
  int64_t first_element(size_t g) const { return element_[g]; }
  int64_t first_block(size_t g) const { return block_[g]; }
  // The gradient that holds this element.
  size_t find_element(int64_t element) const {
    return std::upper_bound(element_.begin(), element_.end(), element) - element_.begin() - 1;
  }

 private:
  const TensorData* gradients_;
  std::vector<int64_t> element_;
  std::vector<int64_t> block_;
};

inline double checked_norm_type(const char* op, double p) {
  STD_TORCH_CHECK(p >= 0 || p == -INFINITY, op, ": norm_type must be a non-negative number, inf or -inf, got ", p);
  return p;
}

inline NonFinite checked_nonfinite(const char* op, int64_t value) {
  STD_TORCH_CHECK(
      value >= 0 && value <= int64_t(NonFinite::kZero), op,
      ": nonfinite must be 0 (propagate), 1 (skip) or 2 (zero), got ", value);
  return NonFinite(value);
}

// Whether the norm's total can leave float64's range on these gradients.
template <class Terms>
constexpr bool may_leave_range(bool has_float64) {
  return Terms::may_leave_range || (Terms::may_leave_range_in_float64 && has_float64);
}

// A norm as the scaling kernels read it: one float32 or float64 beside the gradients.
inline void check_total_norm(const TensorList& gradients, const Tensor& norm) {
  constexpr const char* op = "clip_grads_with_norm_";
  STD_TORCH_CHECK(norm.numel() == 1, op, ": total_norm must have one element, got ", norm.numel());
  STD_TORCH_CHECK(
      norm.scalar_type() == ScalarType::Float || norm.scalar_type() == ScalarType::Double, op,
      ": total_norm must be float32 or float64, got ", torch::headeronly::toString(norm.scalar_type()));
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(norm.get(), &type));
  STD_TORCH_CHECK(
      type == gradients.device_type && norm.get_device_index() == gradients.device_index, op,
      ": total_norm must be on the gradients' device");
}

template <class T>
constexpr Storage storage_of_type() {
  if (std::is_same<T, float>::value) return Storage::kFloat;
  if (std::is_same<T, double>::value) return Storage::kDouble;
  return std::is_same<T, Half>::value ? Storage::kHalf : Storage::kBFloat16;
}

// `loop(Type<T>, x, out, numel)` clamps numel elements in memory order.
template <class Loop>
Tensor clip_gradient_value_backward(const Tensor& grad, double clip_value, Loop&& loop) {
  constexpr const char* op = "clip_gradient_value_backward";
  STD_TORCH_CHECK(clip_value >= 0, op, ": clip_value must be non-negative, got ", clip_value);
  Tensor out = new_like(grad);
  if (grad.numel() == 0) return out;
  Tensor dense = in_layout_of(out, grad);
  dispatch_floating(
      op, "grad", grad, [&](auto type) { loop(type, dense.const_data_ptr(), out.mutable_data_ptr(), grad.numel()); });
  return out;
}

// `loop(Type<T>, x, out, rows, length)` clips each row, the last row_dims dimensions of grad. The result is row-major;
// the Function permutes what is not.
template <class Loop>
Tensor clip_gradient_norm_backward(const Tensor& grad, int64_t row_dims, Loop&& loop) {
  constexpr const char* op = "clip_gradient_norm_backward";
  STD_TORCH_CHECK(
      row_dims >= 0 && row_dims <= grad.dim(), op, ": row_dims must be in [0, ", grad.dim(), "], got ", row_dims);
  Tensor dense = row_major(grad);
  Tensor out = new_like(dense);
  if (grad.numel() == 0) return out;
  int64_t length = 1;
  for (int64_t d = grad.dim() - row_dims; d < grad.dim(); ++d) length *= grad.size(d);
  dispatch_floating(op, "grad", grad, [&](auto type) {
    loop(type, dense.const_data_ptr(), out.mutable_data_ptr(), grad.numel() / length, length);
  });
  return out;
}

}  // namespace ste_ops
