// Products of binary matrices and convolutions: tiles of 64 features by 64 outputs, whose words lie in shared memory.
#include "cuda/binarize/bits.cuh"
#include "ops/binarize/products.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kProductThreads = 256;
constexpr int kTile = 64;   // features, and outputs, of a block
constexpr int kSteps = 16;  // words of each that are in shared memory at once
constexpr int kOwn = 4;     // features, and outputs, of a thread

// Rows of a matrix, as panels.
struct MatrixInputs {
  const uint32_t* panels;
  int64_t words;

  struct Output {
    const uint32_t* own;
  };
  __device__ Output output(int64_t, int64_t row) const {
    return {panels + row / kPanelRows * words * kPanelRows + row % kPanelRows};
  }
  __device__ void load(const Output& row, int64_t k, uint32_t& word, uint32_t& mask) const {
    word = row.own[k * kPanelRows];
    mask = 0;
  }
  __device__ int64_t place(int64_t row, int64_t, int64_t features) const { return row * features; }
};

// The patches under a kernel, read from planes of words.
struct PatchInputs {
  const uint32_t* planes;
  Convolution c;
  bool ones_padded, channels_last;

  struct Output {
    const uint32_t* planes;
    int64_t y, x;
  };
  __device__ Output output(int64_t group, int64_t output) const {
    const int64_t pixel = output % c.out_pixels(), image = output / c.out_pixels();
    return {
        planes + (image * c.groups + group) * c.channel_words() * c.pixels(), pixel / c.out_width * c.stride_y - c.top,
        pixel % c.out_width * c.stride_x - c.left};
  }
  // The mask has a one for each channel that is no padding.
  __device__ void load(const Output& o, int64_t k, uint32_t& word, uint32_t& mask) const {
    const int steps = int(k), words = int(c.channel_words()), width = int(c.kernel_width);
    const int w = steps % words, tap = steps / words;
    const int64_t y = o.y + tap / width * c.dilation_y, x = o.x + tap % width * c.dilation_x;
    const uint32_t channels = low_bits(c.channels - int64_t(w) * kWordBits);
    if (y >= 0 && y < c.height && x >= 0 && x < c.width) {
      word = o.planes[w * c.pixels() + y * c.width + x];
      mask = channels;
    } else {
      word = ones_padded ? channels : 0;
      mask = 0;
    }
  }
  // Where feature 0 of an output lies.
  __device__ int64_t place(int64_t output, int64_t, int64_t features) const {
    if (channels_last) return output * features;
    return output / c.out_pixels() * features * c.out_pixels() + output % c.out_pixels();
  }
};

template <class T>
struct ProductOutputs {
  using A = arithmetic_t<T>;
  T* out;
  const A *scale, *bias;
  bool one_scale;
  int64_t feature_stride;
};

struct ProductSizes {
  int64_t groups, features, outputs, words;
  int32_t all;  // numbers of a sum, where neither padding nor steps change it
};

// Loads a stretch of words of the block's features and outputs.
template <Count kCount, class Inputs>
__device__ void load_tile(
    const uint32_t* weights, const Inputs& inputs, const typename Inputs::Output& output, bool in_outputs,
    int64_t feature, int64_t features, int64_t words, int64_t begin, uint32_t (*a)[kTile], uint32_t (*b)[kTile],
    uint32_t (*masks)[kTile]) {
  const int column = int(threadIdx.x) % kTile;
  for (int step = int(threadIdx.x) / kTile; step < kSteps; step += kProductThreads / kTile) {
    const int64_t k = begin + step;
    uint32_t word = 0, input = 0, mask = 0;
    if (k < words) {
      if (feature < features) {
        word = weights[(feature / kPanelRows * words + k) * kPanelRows + feature % kPanelRows];
      }
      if (in_outputs) inputs.load(output, k, input, mask);
    }
    a[step][column] = word;
    b[step][column] = input;
    if constexpr (kCount == Count::masked_lanes) masks[step][column] = mask;
  }
}

// The threads of a warp are neighbours along the outputs, or if `kFeaturesFirst` along the features.
// Moves: no fixed number: each tile reads its words again.
template <Count kCount, bool kFeaturesFirst, class Inputs, class T>
__global__ void __launch_bounds__(kProductThreads, 3)
    binary_product_kernel(const uint32_t* weights, Inputs inputs, ProductSizes sizes, ProductOutputs<T> outputs) {
  using A = arithmetic_t<T>;
  __shared__ uint32_t a[kSteps][kTile], b[kSteps][kTile], masks[kCount == Count::masked_lanes ? kSteps : 1][kTile];
  const int64_t feature_tiles = (sizes.features + kTile - 1) / kTile, tile = blockIdx.x;
  const int64_t output_tiles = (sizes.outputs + kTile - 1) / kTile;
  const int64_t group = tile / feature_tiles / output_tiles;
  const int64_t first_feature = tile % feature_tiles * kTile;
  const int64_t first_output = tile / feature_tiles % output_tiles * kTile;
  const uint32_t* own = weights + group * panels_of(sizes.features) * sizes.words * kPanelRows;
  const int column = int(threadIdx.x) % kTile;
  const bool in_outputs = first_output + column < sizes.outputs;
  const typename Inputs::Output loaded = inputs.output(group, in_outputs ? first_output + column : 0);
  const int fast = int(threadIdx.x) % (kTile / kOwn), slow = int(threadIdx.x) / (kTile / kOwn);
  const int feature = kFeaturesFirst ? fast : slow, output = kFeaturesFirst ? slow : fast;
  int32_t counts[kOwn][kOwn] = {}, ones[kOwn] = {};
  for (int64_t begin = 0; begin < sizes.words; begin += kSteps) {
    load_tile<kCount>(
        own, inputs, loaded, in_outputs, first_feature + column, sizes.features, sizes.words, begin, a, b, masks);
    __syncthreads();
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int lane = output + j * (kTile / kOwn);
        const uint32_t input = b[k][lane];
        uint32_t mask = ~0u;
        if constexpr (kCount == Count::masked_lanes) mask = masks[k][lane];
        if constexpr (kCount == Count::masked_lanes) ones[j] += __popc(mask);
        if constexpr (kCount == Count::step_lanes) ones[j] += __popc(input);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const uint32_t weight = a[k][feature + i * (kTile / kOwn)];
          counts[i][j] += __popc(kCount == Count::step_lanes ? input & ~weight : (input ^ weight) & mask);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < kOwn; ++j) {
    const int64_t at = first_output + output + j * (kTile / kOwn);
    const int64_t place = inputs.place(at, group, sizes.groups * sizes.features);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int64_t of_group = first_feature + feature + i * (kTile / kOwn);
      if (at >= sizes.outputs || of_group >= sizes.features) continue;
      const int64_t number = group * sizes.features + of_group;
      A value = A((kCount == Count::differing ? sizes.all : ones[j]) - 2 * counts[i][j]);
      if (outputs.scale != nullptr) value = value * outputs.scale[outputs.one_scale ? 0 : number];
      if (outputs.bias != nullptr) value = value + outputs.bias[number];
      outputs.out[place + number * outputs.feature_stride] = store<T>(value);
    }
  }
}

template <class T, class Call>
ProductOutputs<T> outputs_of(const Call& call, int64_t feature_stride) {
  using A = arithmetic_t<T>;
  return {
      mutable_data<T>(call.out), call.scale ? const_data<A>(*call.scale) : nullptr,
      call.bias ? const_data<A>(*call.bias) : nullptr, call.scale && call.scale->numel() == 1, feature_stride};
}

template <Count kCount, bool kFeaturesFirst, class Inputs, class Call>
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
    launch_product<Count::step_lanes, true>(launch, call, weights, inputs, sizes, 1);
  } else {
    launch_product<Count::differing, true>(launch, call, weights, inputs, sizes, 1);
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
    launch_product<Count::step_lanes, kFeaturesFirst>(launch, call, weights, inputs, sizes, stride);
  } else if (padded && call.padding_value == 0) {
    launch_product<Count::masked_lanes, kFeaturesFirst>(launch, call, weights, inputs, sizes, stride);
  } else {
    launch_product<Count::differing, kFeaturesFirst>(launch, call, weights, inputs, sizes, stride);
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
