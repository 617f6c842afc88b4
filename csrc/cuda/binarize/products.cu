// Products of binary matrices and convolutions: their packing and their launches.
#include "cuda/binarize/product.cuh"
#include "ops/binarize/products.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T, class Call>
ProductOutputs<T> outputs_of(const Call& call, int64_t feature_stride) {
  using A = arithmetic_t<T>;
  return {
      mutable_data<T>(call.out), call.scale ? const_data<A>(*call.scale) : nullptr,
      call.bias ? const_data<A>(*call.bias) : nullptr, call.scale && call.scale->numel() == 1, feature_stride};
}

template <Counting kCount, bool kFeaturesFirst, class Inputs, class Call>
void launch_product(
    const Launcher& launch, const Call& call, const Tensor& weights, const Inputs& inputs, const ProductSizes& sizes,
    int64_t feature_stride) {
  const int64_t tiles = sizes.groups * blocks_for(sizes.features, kTile) * blocks_for(sizes.outputs, kTile);
  dispatch_floating("binary_product", "out", call.out, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(
        binary_product_kernel<kCount, kFeaturesFirst, Inputs, T>, tiles, kProductThreads, const_data<uint32_t>(weights),
        inputs, sizes, outputs_of<T>(call, feature_stride));
  });
}

// A matrix or weights (groups * features, channels, taps) as panels; row_stride in elements of what it holds.
Tensor packed(const Launcher& launch, const Tensor& x, PanelShape shape, int64_t channel_stride, bool step) {
  const Tensor panels = new_contiguous({shape.size()}, ScalarType::Int, x);
  const int64_t blocks = blocks_for(shape.size(), kPackThreads);
  const auto pack = [&](auto source) {
    launch(pack_panels_kernel<decltype(source)>, blocks, kPackThreads, source, shape, mutable_data<uint32_t>(panels));
  };
  if (x.scalar_type() == ScalarType::Byte) {
    pack(ByteSource{const_data<uint8_t>(x), channel_stride});
    return panels;
  }
  dispatch_floating("pack_panels", "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    if (step) {
      pack(NumberSource<IsAboveZero, T>{const_data<T>(x), channel_stride});
    } else {
      pack(NumberSource<IsPlus, T>{const_data<T>(x), channel_stride});
    }
  });
  return panels;
}

Tensor packed_weight(const Launcher& launch, const Tensor& given, int64_t groups, int64_t channels, int64_t taps) {
  if (given.scalar_type() == ScalarType::Int) return given;
  const Tensor weight = row_major(given);
  const int64_t row = weight.size(1) * taps;
  return packed(launch, weight, {groups, weight.size(0) / groups, channels, taps, row}, taps, false);
}

Tensor binary_panels_cuda(Tensor weight, int64_t channels, int64_t groups) {
  constexpr const char* op = "binary_panels";
  const Launcher launch(weight, op);
  const PanelsCall call(op, weight, channels, groups);
  if (call.panels.numel() == 0) return call.panels;
  const Tensor panels = packed_weight(launch, call.weight, groups, channels, call.taps);
  return torch::stable::view(
      panels, {groups * panels_of(call.features), call.taps * words_of(channels), int64_t(kPanelRows)});
}

Tensor binary_linear_cuda(
    Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias, int64_t in_features,
    int64_t out_features, bool step, ScalarType dtype) {
  constexpr const char* op = "binary_linear";
  const Launcher launch(x, op);
  const LinearCall call(op, x, weight, scale, bias, in_features, out_features, step, dtype);
  if (call.out.numel() == 0) return call.out;
  const Tensor rows = row_major(x);
  const int64_t row = rows.size(rows.dim() - 1);
  const Tensor panels = packed(launch, rows, {1, call.rows, in_features, 1, row}, 1, step);
  const Tensor weights = packed_weight(launch, weight, 1, in_features, 1);
  const MatrixInputs inputs = {const_data<uint32_t>(panels), words_of(in_features)};
  const ProductSizes sizes = {1, out_features, call.rows, inputs.words, int32_t(in_features)};
  if (step) {
    launch_product<Counting::step_lanes, true>(launch, call, weights, inputs, sizes, 1);
  } else {
    launch_product<Counting::differing, true>(launch, call, weights, inputs, sizes, 1);
  }
  return call.out;
}

Tensor packed_planes(const Launcher& launch, const ConvolutionCall& call) {
  const Convolution& c = call.sizes;
  const Tensor& x = call.x;
  const bool bits = x.scalar_type() == ScalarType::Byte;
  const int64_t size = c.batch * c.groups * c.channel_words() * c.pixels();
  const Tensor planes = new_contiguous({size}, ScalarType::Int, x);
  const int64_t of_group = bits ? mask_bytes(c.channels) : c.channels;
  const PlaneShape shape = {c.groups, c.channels,  c.channel_words(),      c.height,    c.width,
                            size,     x.stride(0), of_group * x.stride(1), x.stride(2), x.stride(3)};
  const auto pack = [&](auto source) {
    launch(
        pack_planes_kernel<decltype(source)>, blocks_for(size, kPackThreads), kPackThreads, source, shape,
        mutable_data<uint32_t>(planes));
  };
  if (bits) {
    pack(ByteSource{const_data<uint8_t>(x), x.stride(1)});
    return planes;
  }
  dispatch_floating("binary_conv2d", "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    if (call.step) {
      pack(NumberSource<IsAboveZero, T>{const_data<T>(x), x.stride(1)});
    } else {
      pack(NumberSource<IsPlus, T>{const_data<T>(x), x.stride(1)});
    }
  });
  return planes;
}

template <bool kFeaturesFirst>
void launch_convolution(
    const Launcher& launch, const ConvolutionCall& call, const Tensor& weights, const PatchInputs& inputs,
    bool padded) {
  const Convolution& c = call.sizes;
  const ProductSizes sizes = {c.groups, c.features, c.outputs(), c.words(), int32_t(c.channels * c.taps())};
  const int64_t stride = call.channels_last ? 1 : c.out_pixels();
  if (call.step) {
    launch_product<Counting::step_lanes, kFeaturesFirst>(launch, call, weights, inputs, sizes, stride);
  } else if (padded && call.padding_value == 0) {
    launch_product<Counting::masked_lanes, kFeaturesFirst>(launch, call, weights, inputs, sizes, stride);
  } else {
    launch_product<Counting::differing, kFeaturesFirst>(launch, call, weights, inputs, sizes, stride);
  }
}

Tensor binary_conv2d_cuda(
    Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias, int64_t in_channels,
    int64_t out_channels, std::vector<int64_t> kernel, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, int64_t groups, int64_t padding_value, bool step, bool channels_last,
    ScalarType dtype) {
  constexpr const char* op = "binary_conv2d";
  const Launcher launch(x, op);
  const ConvolutionCall call(
      op, x, weight, scale, bias, in_channels, out_channels, kernel, stride, padding, dilation, groups, padding_value,
      step, channels_last, dtype);
  if (call.out.numel() == 0) return call.out;
  const Convolution& c = call.sizes;
  const Tensor weights = packed_weight(launch, weight, groups, c.channels, c.taps());
  const Tensor planes = packed_planes(launch, call);
  const PatchInputs inputs = {const_data<uint32_t>(planes), c, padding_value == 1, channels_last};
  const bool padded = c.top + c.left + call.bottom + call.right > 0;
  if (channels_last) {
    launch_convolution<true>(launch, call, weights, inputs, padded);
  } else {
    launch_convolution<false>(launch, call, weights, inputs, padded);
  }
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("binary_linear", TORCH_BOX(&binary_linear_cuda));
  m.impl("binary_conv2d", TORCH_BOX(&binary_conv2d_cuda));
  m.impl("binary_panels", TORCH_BOX(&binary_panels_cuda));
}

}  // namespace ste_ops
