// Products of binary matrices and convolutions as counts of differing bits.
#include "ops/binarize/products.h"
#include "cpu/binarize/planes.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class A>
Features<A> features_of(const std::optional<Tensor>& scale, const std::optional<Tensor>& bias) {
  return {scale ? const_data<A>(*scale) : nullptr, bias ? const_data<A>(*bias) : nullptr, scale && scale->numel() == 1};
}

// A weight's panels: those that it is, or new ones, which `made` keeps.
const uint32_t* weight_panels(Capability level, const Tensor& weight, int64_t channels, int64_t groups, Words& made) {
  if (weight.scalar_type() == ScalarType::Int) return const_data<uint32_t>(weight);
  const Tensor w = row_major(weight);
  int64_t taps = 1;
  for (int64_t d = 2; d < w.dim(); ++d) taps *= w.size(d);
  const auto pack = [&](auto pointer) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(pointer)>>;
    const Weights<T> weights = {pointer, groups, w.size(0) / groups, channels, taps};
    made = new_words(weights.panels() * weights.words() * kPanelRows);
    pack_weights(level, weights, made.get());
  };
  if (w.scalar_type() == ScalarType::Byte) {
    pack(const_data<uint8_t>(w));
  } else {
    dispatch_floating(
        "binary_conv2d", "weight", w, [&](auto type) { pack(const_data<typename decltype(type)::type>(w)); });
  }
  return made.get();
}

// The panels of the rows of a matrix (..., numbers), of numbers or bits.
template <class Rule>
Words matrix_panels(Capability level, const Tensor& x, int64_t rows, int64_t numbers) {
  if (x.scalar_type() == ScalarType::Byte) {
    const Tensor bytes = row_major(x);
    return panels_of_rows<Rule>(level, ByteRows{const_data<uint8_t>(bytes), rows, numbers});
  }
  const bool strided = x.dim() == 2 && (x.stride(1) == 1 || x.stride(0) == 1);
  const Tensor own = strided ? x : row_major(x);
  const int64_t row_stride = strided ? own.stride(0) : numbers, number_stride = strided ? own.stride(1) : 1;
  Words panels;
  dispatch_floating("binary_linear", "x", own, [&](auto type) {
    using T = typename decltype(type)::type;
    panels = panels_of_rows<Rule>(level, Rows<T>{const_data<T>(own), rows, numbers, row_stride, number_stride});
  });
  return panels;
}

constexpr int64_t kBlockBytes = 256 * 1024;  // of rows that stay in the second-level cache while all lanes pass

template <class T>
void multiply_linear(
    const ChosenCapability& chosen, const LinearCall& call, const uint32_t* rows, const uint32_t* lanes,
    const int32_t* ones) {
  using A = arithmetic_t<T>;
  const Counters counters = counters_of(call.step ? Count::step_rows : Count::differing, chosen);
  const int64_t words = words_of(call.numbers), panel = words * kPanelRows;
  const int64_t block_rows = std::max<int64_t>(1, kBlockBytes / (4 * std::max<int64_t>(panel, 1))) * kPanelRows;
  const int64_t pairs = (panels_of(call.features) + 1) / 2, blocks = (call.rows + block_rows - 1) / block_rows;
  const Features<A> features = features_of<A>(call.scale, call.bias);
  const double each = nanoseconds_of(chosen, std::min(block_rows, call.rows), kTileLanes, words);
  share_out(blocks * pairs, each, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / pairs * block_rows, feature = i % pairs * kTileLanes;
      const Run run = {0, std::min<int64_t>(kTileLanes, call.features - feature), 0};
      const Block<T> block = {
          {rows + first / kPanelRows * panel, nullptr, ones ? ones + first : nullptr},
          {lanes + feature / kPanelRows * panel, nullptr, nullptr},
          std::min(block_rows, call.rows - first),
          words,
          run.count > kPanelRows ? 2 : 1,
          ones ? 0 : int32_t(call.numbers),
          false,
          features.from(feature),
          mutable_data<T>(call.out) + first * call.features + feature,
          call.features,
          &run,
          1};
      multiply(chosen.level, counters, block);
    }
  });
}

template <class Rule>
Words linear_panels(Capability level, const LinearCall& call) {
  return matrix_panels<Rule>(level, call.x, call.rows, call.numbers);
}

Tensor binary_linear_cpu(
    Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias, int64_t in_features,
    int64_t out_features, bool step, ScalarType dtype) {
  constexpr const char* op = "binary_linear";
  const ChosenCapability& chosen = checked_capability(op);
  const LinearCall call(op, x, weight, scale, bias, in_features, out_features, step, dtype);
  if (call.out.numel() == 0) return call.out;
  const Words rows = step ? linear_panels<IsAboveZero>(chosen.level, call) : linear_panels<IsPlus>(chosen.level, call);
  Words made;
  const uint32_t* lanes;
  if (weight.scalar_type() == ScalarType::Int) {
    lanes = const_data<uint32_t>(weight);
  } else {
    made = matrix_panels<IsPlus>(chosen.level, weight, out_features, in_features);
    lanes = made.get();
  }
  std::vector<int32_t> ones(step ? size_t(call.rows) : 0);
  if (step) {
    const Counters steps = counters_of(Count::step_lanes, chosen);
    count_ones(steps, rows.get(), call.rows, words_of(in_features), ones.data());
  }
  dispatch_floating(op, "out", call.out, [&](auto type) {
    multiply_linear<typename decltype(type)::type>(chosen, call, rows.get(), lanes, step ? ones.data() : nullptr);
  });
  return call.out;
}

// The bits of a convolution's input.
Words input_planes(Capability level, const ConvolutionCall& call, const Frame& frame) {
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
Words inside_of(const Frame& frame) {
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
      count_ones(counters_of(Count::step_lanes, chosen), patches.panels.get(), count, c.words(), patches.ones);
    }
    const Side outputs = {
        patches.panels.get(), masked ? patches.masks.get() : nullptr, masked || call.step ? patches.ones : nullptr};
    const Side of_weights = {weights + group * panels_of(c.features) * c.words() * kPanelRows, nullptr, nullptr};
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
      const Side& outputs, const Side& of_weights, bool masked, int32_t all, const Features<A>& own, int64_t group,
      int64_t first, int64_t count) const {
    const Convolution& c = call.sizes;
    const int64_t pixels = c.out_pixels();
    Run runs[kChunk];
    int run_count = 0;
    for (int64_t lane = 0; lane < count;) {
      const int64_t image = (first + lane) / pixels, pixel = (first + lane) % pixels;
      const int64_t length = std::min(count - lane, pixels - pixel);
      runs[run_count++] = {lane, length, image * c.groups * c.features * pixels + pixel};
      lane += length;
    }
    const Count count_as = call.step ? Count::step_lanes : masked ? Count::masked_lanes : Count::differing;
    const Block<T> block = {
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
      const Side& outputs, const Side& of_weights, bool masked, int32_t all, const Features<A>& own, int64_t group,
      int64_t first, int64_t count) const {
    const Convolution& c = call.sizes;
    const int64_t channels = c.groups * c.features;
    const Count count_as = call.step ? Count::step_rows : masked ? Count::masked_rows : Count::differing;
    const Counters counters = counters_of(count_as, chosen);
    for (int64_t feature = 0; feature < c.features; feature += kTileLanes) {
      const Run run = {0, std::min<int64_t>(kTileLanes, c.features - feature), 0};
      const Side lanes = {of_weights.panels + feature * c.words(), nullptr, nullptr};
      const Block<T> block = {
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
  const int64_t chunks = (c.outputs() + kChunk - 1) / kChunk;
  const ConvolutionChunk<T> chunk = {
      chosen, call, weights, features_of<A>(call.scale, call.bias), mutable_data<T>(call.out)};
  const double each = nanoseconds_of(chosen, c.features, kChunk, c.words()) + double(c.words()) * 10;
  share_out(c.groups * chunks, each, [&](int64_t begin, int64_t end) {
    Patches patches(frame);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / chunks, first = i % chunks * kChunk, count = std::min(kChunk, c.outputs() - first);
      const uint32_t* of_group = planes.get() + group * c.channel_words() * frame.plane();
      patches.gather(chosen.level, of_group, inside.get(), first, count);
      chunk(patches, group, first, count);
    }
  });
}

Tensor binary_conv2d_cpu(
    Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> bias, int64_t in_channels,
    int64_t out_channels, std::vector<int64_t> kernel, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, int64_t groups, int64_t padding_value, bool step, bool channels_last,
    ScalarType dtype) {
  constexpr const char* op = "binary_conv2d";
  const ChosenCapability& chosen = checked_capability(op);
  const ConvolutionCall call(
      op, x, weight, scale, bias, in_channels, out_channels, kernel, stride, padding, dilation, groups, padding_value,
      step, channels_last, dtype);
  if (call.out.numel() == 0) return call.out;
  Words made;
  const uint32_t* weights = weight_panels(chosen.level, weight, call.sizes.channels, groups, made);
  dispatch_floating(
      op, "out", call.out, [&](auto type) { convolve<typename decltype(type)::type>(chosen, call, weights); });
  return call.out;
}

Tensor binary_panels_cpu(Tensor weight, int64_t channels, int64_t groups) {
  constexpr const char* op = "binary_panels";
  const ChosenCapability& chosen = checked_capability(op);
  const PanelsCall call(op, weight, channels, groups);
  if (call.panels.numel() == 0) return call.panels;
  const auto pack = [&](auto pointer) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(pointer)>>;
    pack_weights(
        chosen.level, Weights<T>{pointer, groups, call.features, channels, call.taps},
        mutable_data<uint32_t>(call.panels));
  };
  if (call.weight.scalar_type() == ScalarType::Byte) {
    pack(const_data<uint8_t>(call.weight));
  } else {
    dispatch_floating(
        op, "weight", call.weight, [&](auto type) { pack(const_data<typename decltype(type)::type>(call.weight)); });
  }
  return call.panels;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("binary_linear", TORCH_BOX(&binary_linear_cpu));
  m.impl("binary_conv2d", TORCH_BOX(&binary_conv2d_cpu));
  m.impl("binary_panels", TORCH_BOX(&binary_panels_cpu));
}

}  // namespace ste_ops
