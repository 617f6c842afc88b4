// A convolution of bits: its input as planes, and chunk by chunk of its outputs the product of patches and weights.
#pragma once

#include "cpu/binarize/planes.h"
#include "ops/binarize/products.h"

namespace ste_ops {

template <class A>
Features<A> features_of(const std::optional<Tensor>& scale, const std::optional<Tensor>& bias) {
  return {scale ? const_data<A>(*scale) : nullptr, bias ? const_data<A>(*bias) : nullptr, scale && scale->numel() == 1};
}

// The bits of a convolution's input.
inline Words input_planes(Capability level, const ConvolutionCall& call, const Frame& frame) {
  const Convolution& c = call.sizes;
  Words planes = new_words(frame.size());
  if (call.x.scalar_type() == ScalarType::Byte) {
    const Tensor bits = row_major(call.x);
    pack_planes(frame, const_data<uint8_t>(bits), planes.get());
    return planes;
  }
  const bool channels_last = call.x.stride(1) == 1 && is_dense(call.x) && !call.x.is_contiguous() &&
      call.x.stride(3) == c.groups * c.channels && (c.height == 1 || call.x.stride(2) == c.width * call.x.stride(3)) &&
      (c.batch == 1 || call.x.stride(0) == c.pixels() * call.x.stride(3));
  const Tensor x = channels_last ? call.x : row_major(call.x);
  dispatch_floating("binary_conv2d", "x", x, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto pack = [&](auto rule) {
      using Rule = decltype(rule);
      if (channels_last) return pack_pixels<Rule>(level, frame, const_data<T>(x), planes.get());
      pack_planes<Rule>(level, frame, const_data<T>(x), planes.get());
    };
    call.step ? pack(IsAboveZero()) : pack(IsPlus());
  });
  return planes;
}

// A frame of ones around zeros, once for all planes.
inline Words inside_of(const Frame& frame) {
  Words inside = new_words(frame.plane());
  std::fill_n(inside.get(), frame.plane(), 0u);
  for (int64_t y = 0; y < frame.c.height; ++y) {
    std::fill_n(inside.get() + (frame.c.top + y) * frame.width() + frame.c.left, frame.c.width, ~0u);
  }
  return inside;
}

// One chunk of outputs of one group, once its patches are gathered.
template <class T>
struct ConvolutionChunk {
  using A = arithmetic_t<T>;
  const ChosenCapability& chosen;
  const ConvolutionCall& call;
  const uint32_t* weights;
  Features<A> features;
  T* out;

  void operator()(Patches& patches, int64_t group, int64_t first, int64_t count) const {
    const Convolution& c = call.sizes;
    const bool masked = patches.padded && !call.step && call.padding_value == 0;
    if (call.step) {
      count_ones(counters_of(Counting::step_lanes, chosen), patches.panels.get(), count, c.words(), patches.ones);
    }
    const ProductSide outputs = {
        patches.panels.get(), masked ? patches.masks.get() : nullptr, masked || call.step ? patches.ones : nullptr};
    const ProductSide of_weights = {weights + group * panels_of(c.features) * c.words() * kPanelRows, nullptr, nullptr};
    const int32_t all = masked || call.step ? 0 : int32_t(c.channels * c.taps());
    const Features<A> own = features.from(group * c.features);
    if (call.channels_last) {
      along_channels(outputs, of_weights, masked, all, own, group, first, count);
    } else {
      along_pixels(outputs, of_weights, masked, all, own, group, first, count);
    }
  }

  // The lanes are outputs, which follow each other within an image.
  void along_pixels(
      const ProductSide& outputs, const ProductSide& of_weights, bool masked, int32_t all, const Features<A>& own,
      int64_t group, int64_t first, int64_t count) const {
    const Convolution& c = call.sizes;
    const int64_t pixels = c.out_pixels();
    LaneRun runs[kPatchChunk];
    int run_count = 0;
    for (int64_t lane = 0; lane < count;) {
      const int64_t image = (first + lane) / pixels, pixel = (first + lane) % pixels;
      const int64_t length = std::min(count - lane, pixels - pixel);
      runs[run_count++] = {lane, length, image * c.groups * c.features * pixels + pixel};
      lane += length;
    }
    const Counting count_as = call.step ? Counting::step_lanes : masked ? Counting::masked_lanes : Counting::differing;
    const ProductBlock<T> block = {
        of_weights,
        outputs,
        c.features,
        c.words(),
        count > kPanelRows ? 2 : 1,
        all,
        true,
        own,
        out + group * c.features * pixels,
        pixels,
        runs,
        run_count};
    multiply(chosen.level, counters_of(count_as, chosen), block);
  }

  // The lanes are features.
  void along_channels(
      const ProductSide& outputs, const ProductSide& of_weights, bool masked, int32_t all, const Features<A>& own,
      int64_t group, int64_t first, int64_t count) const {
    const Convolution& c = call.sizes;
    const int64_t channels = c.groups * c.features;
    const Counting count_as = call.step ? Counting::step_rows : masked ? Counting::masked_rows : Counting::differing;
    const Counters counters = counters_of(count_as, chosen);
    for (int64_t feature = 0; feature < c.features; feature += kProductLanes) {
      const LaneRun run = {0, std::min<int64_t>(kProductLanes, c.features - feature), 0};
      const ProductSide lanes = {of_weights.panels + feature * c.words(), nullptr, nullptr};
      const ProductBlock<T> block = {
          outputs,
          lanes,
          count,
          c.words(),
          run.count > kPanelRows ? 2 : 1,
          all,
          false,
          own.from(feature),
          out + first * channels + group * c.features + feature,
          channels,
          &run,
          1};
      multiply(chosen.level, counters, block);
    }
  }
};

template <class T>
void convolve(const ChosenCapability& chosen, const ConvolutionCall& call, const uint32_t* weights) {
  using A = arithmetic_t<T>;
  const Convolution& c = call.sizes;
  const Frame frame = {c, call.bottom, call.right, call.padding_value == 1};
  const Words planes = input_planes(chosen.level, call, frame);
  const bool masks = !call.step && call.padding_value == 0 && frame.plane() > c.pixels();
  const Words inside = masks ? inside_of(frame) : nullptr;
  const int64_t chunks = (c.outputs() + kPatchChunk - 1) / kPatchChunk;
  const ConvolutionChunk<T> chunk = {
      chosen, call, weights, features_of<A>(call.scale, call.bias), mutable_data<T>(call.out)};
  const double each = nanoseconds_of(chosen, c.features, kPatchChunk, c.words()) + double(c.words()) * 10;
  share_out(c.groups * chunks, each, [&](int64_t begin, int64_t end) {
    Patches patches(frame);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / chunks, first = i % chunks * kPatchChunk,
                    count = std::min(kPatchChunk, c.outputs() - first);
      const uint32_t* of_group = planes.get() + group * c.channel_words() * frame.plane();
      patches.gather(chosen.level, of_group, inside.get(), first, count);
      chunk(patches, group, first, count);
    }
  });
}

}  // namespace ste_ops
