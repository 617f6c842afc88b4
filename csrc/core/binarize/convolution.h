// The places of a convolution of two dimensions; one of one dimension has a height of 1.
#pragma once

#include <cstdint>

#include "core/binarize/bits.h"

namespace ste_ops {

struct Convolution {
  int64_t batch, groups;
  int64_t channels, features;  // of a group
  int64_t height, width, out_height, out_width;
  int64_t kernel_height, kernel_width, stride_y, stride_x, top, left, dilation_y, dilation_x;

  STE_HD int64_t taps() const { return kernel_height * kernel_width; }
  STE_HD int64_t channel_words() const { return words_of(channels); }
  // Of a weight, and of the inputs of one output: the words of the channels tap by tap.
  STE_HD int64_t words() const { return taps() * channel_words(); }
  STE_HD int64_t pixels() const { return height * width; }
  STE_HD int64_t out_pixels() const { return out_height * out_width; }
  STE_HD int64_t outputs() const { return batch * out_pixels(); }
};

}  // namespace ste_ops
