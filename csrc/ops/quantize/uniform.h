// Calls of the uniform quantizers: parameters and their checks, layout, allocation.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "core/groups.h"
#include "core/quantize/uniform.h"
#include "ops/checks.h"
#include "ops/mask.h"

namespace ste_ops {

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
    STE_CHECK(
        given->numel() == count || given->numel() == 1, op, ": ", name, " must have ", count,
        count == 1 ? " element" : " elements", ", got ", given->numel());
    STE_CHECK(given->device() == x.device(), op, ": ", name, " and x must be on one device");
    const ScalarType dtype = arithmetic_type(x);
    tensor = row_major(given->scalar_type() == dtype ? *given : torch::stable::to(*given, dtype));
  }

  // Distance from one channel's to the next.
  int64_t stride() const { return tensor && tensor->numel() > 1; }
  bool shared() const { return stride() == 0; }

  // A being the arithmetic of x; null for a number.
  template <class A>
  const A* data() const {
    return tensor ? const_data<A>(*tensor) : nullptr;
  }
};

// The arguments of a quantizer, checked. An axis of -1: one step for every element.
struct Quantizer {
  Parameter scale, zero_point;
  int64_t quant_min, quant_max, axis;
  bool is_offset;  // of lsq_plus, which the zero point then is

  Quantizer(
      const char* op, const Tensor& x, const std::optional<Tensor>& scale, const std::optional<Tensor>& zero_point,
      double scale_number, double zero_point_number, int64_t quant_min, int64_t quant_max, int64_t axis,
      bool is_offset = false)
      : scale(op, "scale", scale, scale_number, x, checked(op, axis, x)),
        zero_point(op, is_offset ? "offset" : "zero_point", zero_point, zero_point_number, x, axis),
        quant_min(quant_min),
        quant_max(quant_max),
        axis(axis),
        is_offset(is_offset) {
    STE_CHECK(
        quant_min < quant_max, op, ": quant_min must be less than quant_max, got ", quant_min, " and ", quant_max);
  }

  // Whether the zero point need not be whole: a floating tensor, or such a number.
  static bool is_affine(const std::optional<Tensor>& zero_point, double number) {
    if (!zero_point) return number != std::floor(number);
    const ScalarType type = zero_point->scalar_type();
    return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
        type == ScalarType::BFloat16;
  }

  // One step for every element.
  bool shared() const { return scale.shared() && zero_point.shared(); }

  // The elements of `dense`, which has no gaps, that share a step.
  Groups groups_of(const Tensor& dense) const {
    if (shared()) return whole_tensor(dense.numel());
    return channels(dense.numel(), dense.size(axis), dense.stride(axis));
  }

  template <template <class> class Op, class A>
  Op<A> element() const {
    return Op<A>(quant_min, quant_max);
  }

 private:
  static int64_t checked(const char* op, int64_t axis, const Tensor& x) {
    STE_CHECK(axis >= -1 && axis < x.dim(), op, ": axis must be in [-1, ", x.dim(), "), got ", axis);
    return axis;
  }
};

// 2^bits - 1.
inline int64_t steps_of_bits(const char* op, int64_t bits) {
  STE_CHECK(bits >= 1 && bits <= 24, op, ": bits must be in [1, 24], got ", bits);
  return (int64_t(1) << bits) - 1;
}

// The steps of channels as rows of one tensor, to fill: scale, its reciprocal and, where there is one, the offset.
struct StepRows {
  Tensor scale, rows;
  std::optional<Tensor> offset;
  int64_t count;

  StepRows(const char* op, const Tensor& given_scale, const std::optional<Tensor>& given_offset, bool wide)
      : scale(in_arithmetic(given_scale, wide)), rows(scale), count(scale.numel()) {
    if (given_offset) {
      offset = in_arithmetic(*given_offset, wide);
      const int64_t numel = offset->numel();
      STE_CHECK(
          numel == count || numel == 1 || count == 1, op, ": scale and offset must have as many elements, got ", count,
          " and ", numel);
      count = std::max(count, numel);
    }
    const int64_t sizes[2] = {given_offset ? 3 : 2, count}, strides[2] = {std::max<int64_t>(count, 1), 1};
    rows = empty_strided({sizes, 2}, {strides, 2}, scale.scalar_type(), scale);
  }

  int64_t scale_stride() const { return scale.numel() > 1; }
  int64_t offset_stride() const { return offset && offset->numel() > 1; }

 private:
  static Tensor in_arithmetic(const Tensor& given, bool wide) {
    const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
    return row_major(given.scalar_type() == dtype ? given : torch::stable::to(given, dtype));
  }
};

// lsq takes a quantizer without a zero point.
inline Quantizer lsq_quantizer(
    const Tensor& x, const Tensor& scale, int64_t quant_min, int64_t quant_max, int64_t axis) {
  return Quantizer("lsq", x, scale, std::nullopt, 0, 0, quant_min, quant_max, axis);
}

inline Quantizer lsq_plus_quantizer(
    const Tensor& x, const Tensor& scale, const Tensor& offset, int64_t quant_min, int64_t quant_max, int64_t axis) {
  return Quantizer("lsq_plus", x, scale, offset, 0, 0, quant_min, quant_max, axis, true);
}

// What lsq_backward reads, and the gradients to fill: of_x in x's memory order, where it is asked for. `factor`
// multiplies that of the scale.
struct LsqBackward {
  Tensor of_scale, x, grad;
  double factor;
  std::optional<Tensor> of_x;
};

// Which gradients a backward makes.
enum class Gradients { all, of_parameters };

// 1 / sqrt(N * quant_max), N being the elements that share a scale: of all of x, or of one of the samples along
// dimension 0 (section 2.2 of the paper). Counted here, where sizes are numbers, and not where they may be symbols.
inline double lsq_grad_scale(const Quantizer& quantizer, const Tensor& x, const Tensor& scale, bool of_sample) {
  int64_t shared = x.numel() / std::max<int64_t>(scale.numel(), 1);
  if (of_sample && x.dim() > 0 && quantizer.axis != 0) shared /= std::max<int64_t>(x.size(0), 1);
  return 1 / std::sqrt(double(std::max<int64_t>(shared, 1)) * double(quantizer.quant_max));
}

inline LsqBackward prepare_lsq_backward(
    const char* op, const Tensor& grad, const Tensor& x, const Tensor& scale, const Quantizer& quantizer,
    std::optional<double> grad_scale, bool of_sample, Gradients made = Gradients::all) {
  check_like(op, "grad", grad, "x", x);
  STE_CHECK(
      grad_scale || quantizer.quant_max > 0, op,
      ": grad_scale must be given where quant_max is not positive, got quant_max ", quantizer.quant_max);
  Tensor of_scale = new_like(scale);
  if (x.numel() == 0) torch::stable::zero_(of_scale);
  const double factor = grad_scale ? *grad_scale : lsq_grad_scale(quantizer, x, scale, of_sample);
  const Tensor dense = dense_of(x);
  LsqBackward call{of_scale, dense, in_layout_of(dense, grad), factor, std::nullopt};
  if (made == Gradients::all) call.of_x = new_like(x);
  return call;
}

// And of lsq_plus_backward. The gradients of scale and offset are made in one dtype, which holds both.
struct LsqPlusBackward : LsqBackward {
  Tensor of_offset;

  std::tuple<Tensor, Tensor, Tensor> in_dtypes_of(const Tensor& scale, const Tensor& offset) const {
    return {*of_x, in_dtype_of(scale, of_scale), in_dtype_of(offset, of_offset)};
  }
  std::tuple<Tensor, Tensor> of_parameters(const Tensor& scale, const Tensor& offset) const {
    return {in_dtype_of(scale, of_scale), in_dtype_of(offset, of_offset)};
  }

 private:
  static Tensor in_dtype_of(const Tensor& like, const Tensor& made) {
    return made.scalar_type() == like.scalar_type() ? made : torch::stable::to(made, like.scalar_type());
  }
};

inline LsqPlusBackward prepare_lsq_plus_backward(
    const char* op, const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& offset,
    const Quantizer& quantizer, std::optional<double> grad_scale, bool of_sample, Gradients made = Gradients::all) {
  STE_CHECK(
      scale.numel() == offset.numel(), op, ": scale and offset must have as many elements, got ", scale.numel(),
      " and ", offset.numel());
  const ScalarType a = scale.scalar_type(), b = offset.scalar_type();
  const bool wide = a == ScalarType::Double || b == ScalarType::Double;
  const ScalarType dtype = a == b ? a : wide ? ScalarType::Double : ScalarType::Float;
  const Tensor scale_like = a == dtype ? scale : torch::stable::to(scale, dtype);
  const Tensor offset_like = b == dtype ? offset : torch::stable::to(offset, dtype);
  Tensor of_offset = new_like(offset_like);
  if (x.numel() == 0) torch::stable::zero_(of_offset);
  return {prepare_lsq_backward(op, grad, x, scale_like, quantizer, grad_scale, of_sample, made), of_offset};
}

// The masks of pact.
struct PactMasks {
  Tensor inside, above;
};

// What pact_backward reads beside its masks, and the gradients to fill, in row-major order.
struct PactBackward {
  Tensor of_x, of_alpha, grad;
};

inline PactBackward prepare_pact_backward(const Tensor& grad, const PactMasks& masks, const Tensor& alpha) {
  check_mask("pact_backward", "inside", masks.inside, grad);
  check_mask("pact_backward", "above", masks.above, grad);
  const Elementwise call(row_major(grad));
  Tensor of_alpha = new_like(alpha);
  if (grad.numel() == 0) torch::stable::zero_(of_alpha);
  return {call.out, of_alpha, call.x};
}

}  // namespace ste_ops
