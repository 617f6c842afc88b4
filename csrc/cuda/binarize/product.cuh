// The product of bits: tiles of 64 features by 64 outputs, whose words lie in shared memory.
#pragma once

#include "cuda/binarize/bits.cuh"

namespace ste_ops {

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
template <Counting kCount, class Inputs>
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
    if constexpr (kCount == Counting::masked_lanes) masks[step][column] = mask;
  }
}

// The threads of a warp are neighbours along the outputs, or if `kFeaturesFirst` along the features.
// Moves: no fixed number: each tile reads its words again.
template <Counting kCount, bool kFeaturesFirst, class Inputs, class T>
__global__ void __launch_bounds__(kProductThreads, 3)
    binary_product_kernel(const uint32_t* weights, Inputs inputs, ProductSizes sizes, ProductOutputs<T> outputs) {
  using A = arithmetic_t<T>;
  __shared__ uint32_t a[kSteps][kTile], b[kSteps][kTile], masks[kCount == Counting::masked_lanes ? kSteps : 1][kTile];
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
        if constexpr (kCount == Counting::masked_lanes) mask = masks[k][lane];
        if constexpr (kCount == Counting::masked_lanes) ones[j] += __popc(mask);
        if constexpr (kCount == Counting::step_lanes) ones[j] += __popc(input);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const uint32_t weight = a[k][feature + i * (kTile / kOwn)];
          counts[i][j] += __popc(kCount == Counting::step_lanes ? input & ~weight : (input ^ weight) & mask);
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
      A value = A((kCount == Counting::differing ? sizes.all : ones[j]) - 2 * counts[i][j]);
      if (outputs.scale != nullptr) value = value * outputs.scale[outputs.one_scale ? 0 : number];
      if (outputs.bias != nullptr) value = value + outputs.bias[number];
      outputs.out[place + number * outputs.feature_stride] = store<T>(value);
    }
  }
}

}  // namespace ste_ops
