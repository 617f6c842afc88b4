// Calls of the products of bits: their checks and their outputs.
#pragma once

#include <optional>
#include <vector>

#include "core/binarize/bits.h"
#include "core/binarize/convolution.h"
#include "core/bitmask.h"
#include "ops/checks.h"

namespace ste_ops {

// What a tensor holds of its numbers: themselves, of which the sign counts; their bits (pack_bits), or panels
// (binary_panels).
enum class Holds { numbers, bits, panels };

inline Holds holding(const char* op, const char* name, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Byte: return Holds::bits;
    case ScalarType::Int: return Holds::panels;
    case ScalarType::Float:
    case ScalarType::Double:
    case ScalarType::BFloat16:
    case ScalarType::Half: return Holds::numbers;
    default:
      STE_CHECK(
          false, op, ": ", name, " must be float64, float32, bfloat16, float16, or uint8 of pack_bits, got ",
          torch::headeronly::toString(x.scalar_type()));
  }
}

inline void check_floating(const char* op, ScalarType dtype) {
  STE_CHECK(
      dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
          dtype == ScalarType::Half,
      op, ": dtype must be float64, float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype));
}

// scale or bias: one number a feature, or for a scale one of all, in the arithmetic of the output.
inline void check_of_features(
    const char* op, const char* name, const std::optional<Tensor>& numbers, const Tensor& x, ScalarType dtype,
    int64_t features, bool one) {
  if (!numbers) return;
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STE_CHECK(
      numbers->scalar_type() == wide && numbers->is_contiguous(), op, ": ", name, " must be contiguous ",
      torch::headeronly::toString(wide), ", got ", torch::headeronly::toString(numbers->scalar_type()));
  STE_CHECK(
      numbers->numel() == features || (one && numbers->numel() == 1), op, ": ", name, " must have ", features,
      " elements", one ? " or one" : "", ", got ", numbers->numel());
  STE_CHECK(numbers->device() == x.device(), op, ": ", name, " and x must be on one device");
}

inline void check_weight_panels(const char* op, const Tensor& weight, int64_t panels, int64_t words) {
  STE_CHECK(
      weight.dim() == 3 && weight.is_contiguous() && weight.size(0) == panels && weight.size(1) == words &&
          weight.size(2) == kPanelRows,
      op, ": weight must be panels of shape [", panels, ", ", words, ", ", kPanelRows, "], got ", shape_of(weight));
}

// Numbers or bytes of bits, of so many along a dimension.
inline void check_numbers(const char* op, const char* name, const Tensor& x, int64_t dim, int64_t count) {
  const bool bits = x.scalar_type() == ScalarType::Byte;
  const int64_t size = bits ? mask_bytes(count) : count;
  STE_CHECK(
      x.size(dim) == size, op, ": ", name, " must have size ", size, " along dimension ", dim,
      bits ? ", a byte for eight of " : " for ", count, " numbers, got ", shape_of(x));
}

inline Tensor new_contiguous(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  return empty_strided({sizes.data(), sizes.size()}, {strides.data(), strides.size()}, dtype, like);
}

// binary_linear, checked, with its output.
struct LinearCall {
  Tensor x, weight, out;
  std::optional<Tensor> scale, bias;
  int64_t rows, features, numbers;
  bool step;

  LinearCall(
      const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
      const std::optional<Tensor>& bias, int64_t in_features, int64_t out_features, bool step, ScalarType dtype)
      : x(x),
        weight(weight),
        scale(scale),
        bias(bias),
        rows(1),
        features(out_features),
        numbers(in_features),
        step(step) {
    check_floating(op, dtype);
    const Holds of_x = holding(op, "x", x), of_weight = holding(op, "weight", weight);
    STE_CHECK(of_x != Holds::panels, op, ": x must be numbers or uint8 of pack_bits, got Int");
    STE_CHECK(x.dim() >= 1, op, ": x must have a dimension, got shape []");
    STE_CHECK(in_features >= 0 && out_features >= 0, op, ": in_features and out_features must be >= 0");
    STE_CHECK(in_features < (int64_t(1) << 30), op, ": in_features must be below 2^30, got ", in_features);
    check_numbers(op, "x", x, x.dim() - 1, in_features);
    STE_CHECK(weight.device() == x.device(), op, ": weight and x must be on one device");
    if (of_weight == Holds::panels) {
      check_weight_panels(op, weight, panels_of(out_features), words_of(in_features));
    } else {
      STE_CHECK(
          weight.dim() == 2 && weight.size(0) == out_features, op, ": weight must have shape [", out_features, ", ",
          in_features, "], or packed along dimension 1, got ", shape_of(weight));
      check_numbers(op, "weight", weight, 1, in_features);
    }
    check_of_features(op, "scale", scale, x, dtype, out_features, true);
    check_of_features(op, "bias", bias, x, dtype, out_features, false);
    std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = out_features;
    for (size_t d = 0; d + 1 < sizes.size(); ++d) rows *= sizes[d];
    out = new_contiguous(sizes, dtype, x);
  }
};

// binary_conv2d, checked, with its output, which is N C H W or, if `channels_last`, N H W C in memory.
struct ConvolutionCall {
  Tensor x, weight, out;
  std::optional<Tensor> scale, bias;
  Convolution sizes;
  int64_t padding_value, bottom = 0, right = 0;
  bool step, channels_last;

  ConvolutionCall(
      const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
      const std::optional<Tensor>& bias, int64_t in_channels, int64_t out_channels, const std::vector<int64_t>& kernel,
      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
      int64_t groups, int64_t padding_value, bool step, bool channels_last, ScalarType dtype)
      : x(x),
        weight(weight),
        scale(scale),
        bias(bias),
        padding_value(padding_value),
        step(step),
        channels_last(channels_last) {
    check_floating(op, dtype);
    STE_CHECK(x.dim() == 4, op, ": x must have shape [N, C, H, W], got ", shape_of(x));
    STE_CHECK(
        kernel.size() == 2 && stride.size() == 2 && padding.size() == 4 && dilation.size() == 2, op,
        ": kernel, stride and dilation must have two numbers, and padding four");
    STE_CHECK(
        groups >= 1 && in_channels >= 0 && out_channels >= 0 && in_channels % groups == 0 && out_channels % groups == 0,
        op, ": in_channels and out_channels must be multiples of groups, got ", in_channels, ", ", out_channels,
        " and ", groups);
    for (int i = 0; i < 2; ++i) {
      STE_CHECK(
          kernel[i] >= 1 && stride[i] >= 1 && dilation[i] >= 1, op,
          ": kernel, stride and dilation must be positive, got ", kernel[i], ", ", stride[i], " and ", dilation[i]);
    }
    for (const int64_t p : padding) STE_CHECK(p >= 0, op, ": padding must be >= 0, got ", p);
    bottom = padding[2];
    right = padding[3];
    STE_CHECK(
        padding_value == 0 || padding_value == 1 || (padding_value == -1 && !step), op, ": padding_value must be ",
        step ? "0 or 1 beside steps" : "-1, 0 or 1", ", got ", padding_value);
    set_sizes(op, in_channels / groups, out_channels / groups, kernel, stride, padding, dilation, groups);
    check_operands(op, dtype);
    new_output(dtype);
  }

 private:
  void set_sizes(
      const char* op, int64_t channels, int64_t features, const std::vector<int64_t>& kernel,
      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
      int64_t groups) {
    const int64_t height = x.size(2), width = x.size(3);
    const int64_t reach_y = dilation[0] * (kernel[0] - 1) + 1, reach_x = dilation[1] * (kernel[1] - 1) + 1;
    const int64_t high = height + padding[0] + padding[2], wide = width + padding[1] + padding[3];
    STE_CHECK(
        high >= reach_y && wide >= reach_x, op, ": the kernel reaches over ", reach_y, " x ", reach_x,
        ", more than the padded input of ", high, " x ", wide);
    sizes = {
        x.size(0),
        groups,
        channels,
        features,
        height,
        width,
        (high - reach_y) / stride[0] + 1,
        (wide - reach_x) / stride[1] + 1,
        kernel[0],
        kernel[1],
        stride[0],
        stride[1],
        padding[0],
        padding[1],
        dilation[0],
        dilation[1]};
    STE_CHECK(channels * sizes.taps() < (int64_t(1) << 30), op, ": a weight must have fewer than 2^30 numbers");
  }

  void check_operands(const char* op, ScalarType dtype) const {
    const Holds of_x = holding(op, "x", x), of_weight = holding(op, "weight", weight);
    const int64_t all = sizes.channels * sizes.groups;
    STE_CHECK(of_x != Holds::panels, op, ": x must be numbers or uint8 of pack_bits, got Int");
    STE_CHECK(
        of_x != Holds::bits || sizes.groups == 1 || sizes.channels % 8 == 0, op,
        ": the groups of x must be of whole bytes, got ", sizes.channels, " channels each");
    check_numbers(op, "x", x, 1, all);
    STE_CHECK(weight.device() == x.device(), op, ": weight and x must be on one device");
    const int64_t out_channels = sizes.features * sizes.groups;
    if (of_weight == Holds::panels) {
      check_weight_panels(op, weight, sizes.groups * panels_of(sizes.features), sizes.words());
    } else {
      STE_CHECK(
          weight.dim() == 4 && weight.size(0) == out_channels && weight.size(2) == sizes.kernel_height &&
              weight.size(3) == sizes.kernel_width,
          op, ": weight must have shape [", out_channels, ", ", sizes.channels, ", ", sizes.kernel_height, ", ",
          sizes.kernel_width, "], or packed along dimension 1, got ", shape_of(weight));
      check_numbers(op, "weight", weight, 1, sizes.channels);
    }
    check_of_features(op, "scale", scale, x, dtype, out_channels, true);
    check_of_features(op, "bias", bias, x, dtype, out_channels, false);
  }

  void new_output(ScalarType dtype) {
    const int64_t channels = sizes.features * sizes.groups;
    const std::vector<int64_t> shape = {sizes.batch, channels, sizes.out_height, sizes.out_width};
    if (!channels_last) {
      out = new_contiguous(shape, dtype, x);
      return;
    }
    const int64_t row = sizes.out_width * channels;
    const std::vector<int64_t> strides = {sizes.out_height * row, 1, row, channels};
    out = empty_strided({shape.data(), 4}, {strides.data(), 4}, dtype, x);
  }
};

// Weights of any number of taps, to be panels.
struct PanelsCall {
  Tensor weight, panels;
  int64_t groups, features, channels, taps = 1;

  PanelsCall(const char* op, const Tensor& given, int64_t in_channels, int64_t groups)
      : weight(row_major(given)), groups(groups), channels(in_channels) {
    STE_CHECK(
        holding(op, "weight", weight) != Holds::panels && weight.dim() >= 2, op,
        ": weight must be numbers or uint8 of pack_bits of two dimensions or more, got ", shape_of(weight));
    STE_CHECK(
        groups >= 1 && weight.size(0) % groups == 0, op, ": weight's dimension 0 must be a multiple of groups, got ",
        weight.size(0), " and ", groups);
    check_numbers(op, "weight", weight, 1, channels);
    features = weight.size(0) / groups;
    for (int64_t d = 2; d < weight.dim(); ++d) taps *= weight.size(d);
    panels =
        new_contiguous({groups * panels_of(features), taps * words_of(channels), kPanelRows}, ScalarType::Int, weight);
  }
};

// pack_bits along a dimension of a row-major tensor: (outer, numbers, inner) to (outer, bytes, inner).
struct BitsCall {
  int64_t outer = 1, numbers, inner = 1;

  BitsCall(const char* op, const char* name, const Tensor& x, int64_t dim, int64_t numbers) : numbers(numbers) {
    STE_CHECK(x.is_contiguous(), op, ": ", name, " must be contiguous");
    STE_CHECK(dim >= 0 && dim < x.dim(), op, ": dim must be in [0, ", x.dim(), "), got ", dim);
    for (int64_t d = 0; d < dim; ++d) outer *= x.size(d);
    for (int64_t d = dim + 1; d < x.dim(); ++d) inner *= x.size(d);
  }
  int64_t bytes() const { return mask_bytes(numbers); }
};

inline void check_bits(const char* op, const Tensor& bits, const Tensor& out, int64_t dim, const BitsCall& call) {
  bool fits = bits.scalar_type() == ScalarType::Byte && bits.is_contiguous() && bits.dim() == out.dim();
  for (int64_t d = 0; fits && d < out.dim(); ++d) fits = bits.size(d) == (d == dim ? call.bytes() : out.size(d));
  STE_CHECK(
      fits, op, ": bits must be contiguous uint8 with a byte for eight numbers of out's shape ", shape_of(out),
      " along dimension ", dim, ", got ", torch::headeronly::toString(bits.scalar_type()), " of shape ",
      shape_of(bits));
  STE_CHECK(bits.device() == out.device(), op, ": bits and out must be on one device");
}

}  // namespace ste_ops
