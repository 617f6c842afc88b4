// What both backends of the quantizers do around their loops: checks, layout, allocation.
#pragma once

#include <optional>
#include <tuple>

#include "core/groups.h"
#include "core/quantize/uniform.h"
#include "ops/checks.h"
#include "ops/mask.h"

namespace ste_ops {

// The groups of `dense`, which is dense, along an axis; one group where the axis is -1.
inline Groups groups_along(const Tensor& dense, int64_t axis) {
  if (axis < 0) return whole_tensor(dense.numel());
  return channels(dense.numel(), dense.size(axis), dense.stride(axis));
}

// Fills a tensor like x: `loop(groups, x, out)`, const T* and T* in memory order, the groups being those of the memory
// along the axis.
template <class Loop>
Tensor map_groups(const char* op, const Tensor& x, int64_t axis, Loop&& loop) {
  Tensor out = new_like(x);
  if (x.numel() == 0) return out;
  Tensor dense = in_layout_of(out, x);
  dispatch_floating(op, "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    loop(
        groups_along(out, axis), static_cast<const T*>(dense.const_data_ptr()),
        static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

// `loop(x, out, numel)`.
template <class Loop>
Tensor map_elements(const char* op, const Tensor& x, Loop&& loop) {
  return map_groups(op, x, -1, [&](const Groups&, const auto* from, auto* out) { loop(from, out, x.numel()); });
}

// A scale, zero point or alpha: a tensor of one element or one for each channel, in the arithmetic of x and one after
// the other in memory, or a number.
struct Parameter {
  std::optional<Tensor> tensor;
  double number = 0;

  Parameter(
      const char* op, const char* name, const std::optional<Tensor>& given, double number, const Tensor& x,
      int64_t axis)
      : number(number) {
    if (!given) return;
    const int64_t count = axis < 0 ? 1 : x.size(axis);
    STD_TORCH_CHECK(
        given->numel() == count || given->numel() == 1, op, ": ", name, " must have ", count,
        count == 1 ? " element" : " elements", ", got ", given->numel());
    STD_TORCH_CHECK(given->device() == x.device(), op, ": ", name, " and x must be on one device");
    const ScalarType dtype = arithmetic_type(x);
    tensor = row_major(given->scalar_type() == dtype ? *given : torch::stable::to(*given, dtype));
  }

  // Distance from one channel's to the next.
  int64_t stride() const { return tensor && tensor->numel() > 1; }
  bool shared() const { return stride() == 0; }

  // A being the arithmetic of x; null for a number.
  template <class A>
  const A* data() const {
    return tensor ? static_cast<const A*>(tensor->const_data_ptr()) : nullptr;
  }
};

struct Quantizer {
  Parameter scale, zero_point;
  int64_t quant_min, quant_max;

  Quantizer(
      const char* op, const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& zero_point,
      double scale_number, double zero_point_number, int64_t quant_min, int64_t quant_max, int64_t axis)
      : scale(op, "scale", scale, scale_number, x, checked(op, axis, x)),
        zero_point(op, "zero_point", zero_point, zero_point_number, x, axis),
        quant_min(quant_min),
        quant_max(quant_max) {
    STD_TORCH_CHECK(
        quant_min < quant_max, op, ": quant_min must be less than quant_max, got ", quant_min, " and ", quant_max);
  }

  // One step for every element.
  bool shared() const { return scale.shared() && zero_point.shared(); }

 private:
  static int64_t checked(const char* op, int64_t axis, const Tensor& x) {
    STD_TORCH_CHECK(axis >= -1 && axis < x.dim(), op, ": axis must be in [-1, ", x.dim(), "), got ", axis);
    return axis;
  }
};

// 2^bits - 1.
inline int64_t steps_of_bits(const char* op, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= 24, op, ": bits must be in [1, 24], got ", bits);
  return (int64_t(1) << bits) - 1;
}

// `reduce(groups, grad, x, of_x, of_scale)` fills of_x in its memory order and the tensor of_scale.
template <class Reduce>
std::tuple<Tensor, Tensor> lsq_backward(
    const Tensor& grad, const Tensor& x, const Tensor& scale, int64_t axis, Reduce&& reduce) {
  constexpr const char* op = "lsq_backward";
  check_like(op, "grad", grad, "x", x);
  Tensor of_scale = new_like(scale);
  if (x.numel() == 0) torch::stable::zero_(of_scale);
  Tensor of_x = new_like(x);
  if (x.numel() == 0) return {of_x, of_scale};
  Tensor dense = in_layout_of(of_x, x), grads = in_layout_of(of_x, grad);
  dispatch_floating(op, "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    reduce(
        groups_along(of_x, axis), static_cast<const T*>(grads.const_data_ptr()),
        static_cast<const T*>(dense.const_data_ptr()), static_cast<T*>(of_x.mutable_data_ptr()), of_scale);
  });
  return {of_x, of_scale};
}

// `reduce(grad, inside, above, of_x, numel, of_alpha)`, in row-major order here.
template <class Reduce>
std::tuple<Tensor, Tensor> pact_backward(
    const Tensor& grad, const Tensor& inside, const Tensor& above, const Tensor& alpha, Reduce&& reduce) {
  constexpr const char* op = "pact_backward";
  check_mask(op, "inside", inside, grad);
  check_mask(op, "above", above, grad);
  Tensor dense = row_major(grad), of_x = new_like(dense), of_alpha = new_like(alpha);
  if (grad.numel() == 0) {
    torch::stable::zero_(of_alpha);
    return {of_x, of_alpha};
  }
  dispatch_floating(op, "grad", grad, [&](auto type) {
    using T = typename decltype(type)::type;
    reduce(
        static_cast<const T*>(dense.const_data_ptr()), const_bytes(inside), const_bytes(above),
        static_cast<T*>(of_x.mutable_data_ptr()), grad.numel(), of_alpha);
  });
  return {of_x, of_alpha};
}

}  // namespace ste_ops
