// Numbers read as bits into words, a thread for each word.
#pragma once

#include "core/binarize/bits.h"
#include "core/binarize/convolution.h"
#include "core/bitmask.h"
#include "cuda/launch.cuh"

namespace ste_ops {

constexpr int kPackThreads = 256;

// Numbers of any strides, read by a rule.
template <class Rule, class T>
struct NumberSource {
  const T* x;
  int64_t channel_stride;

  // Bit i is that of number first + i, of `count`, of what begins at `place`.
  __device__ uint32_t word(int64_t place, int64_t first, int64_t count) const {
    uint32_t word = 0;
    const T* own = x + place + first * channel_stride;
    for (int64_t i = 0; i < count; ++i) word |= Rule()(own[i * channel_stride]) << i;
    return word;
  }
};

// Bytes of eight bits, `channel_stride` apart.
struct ByteSource {
  const uint8_t* x;
  int64_t channel_stride;

  __device__ uint32_t word(int64_t place, int64_t first, int64_t count) const {
    uint32_t word = 0;
    const uint8_t* own = x + place + first / 8 * channel_stride;
    for (int64_t i = 0; i * 8 < count; ++i) word |= uint32_t(own[i * channel_stride]) << (8 * i);
    return word & low_bits(count);
  }
};

// What is packed into panels: rows of `groups`, each of `channels` for every tap.
struct PanelShape {
  int64_t groups, features, channels, taps, row_stride;
  STE_HD int64_t words() const { return taps * words_of(channels); }
  STE_HD int64_t size() const { return groups * panels_of(features) * words() * kPanelRows; }
};

// Moves: reads numbers * size, writes words * 4.
template <class Source>
__global__ void __launch_bounds__(kPackThreads) pack_panels_kernel(Source source, PanelShape shape, uint32_t* panels) {
  const int64_t words = shape.words(), of_channels = words_of(shape.channels);
  for (int64_t i = grid_index(); i < shape.size(); i += grid_stride()) {
    const int64_t k = i / kPanelRows % words, panel = i / kPanelRows / words, per_group = panels_of(shape.features);
    const int64_t feature = panel % per_group * kPanelRows + i % kPanelRows;
    uint32_t word = 0;
    if (feature < shape.features) {
      const int64_t row = panel / per_group * shape.features + feature, first = k % of_channels * kWordBits;
      const int64_t left = shape.channels - first;
      word = source.word(row * shape.row_stride + k / of_channels, first, left < kWordBits ? left : kWordBits);
    }
    panels[i] = word;
  }
}

// The input of a convolution: [batch][group][word][pixel], of any strides.
struct PlaneShape {
  int64_t groups, channels, channel_words, height, width, size;
  int64_t batch_stride, group_stride, row_stride, column_stride;
};

// Moves: reads numbers * size, writes words * 4.
template <class Source>
__global__ void __launch_bounds__(kPackThreads) pack_planes_kernel(Source source, PlaneShape shape, uint32_t* planes) {
  const int64_t pixels = shape.height * shape.width;
  for (int64_t i = grid_index(); i < shape.size; i += grid_stride()) {
    const int64_t pixel = i % pixels, first = i / pixels % shape.channel_words * kWordBits;
    const int64_t group = i / pixels / shape.channel_words, left = shape.channels - first;
    const int64_t place = group / shape.groups * shape.batch_stride + group % shape.groups * shape.group_stride +
        pixel / shape.width * shape.row_stride + pixel % shape.width * shape.column_stride;
    planes[i] = source.word(place, first, left < kWordBits ? left : kWordBits);
  }
}

}  // namespace ste_ops
