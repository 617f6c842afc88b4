// Products of binary matrices and convolutions as counts of differing bits.
#include "cpu/binarize/convolve.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// A weight's panels: those that it is, or new ones, which `made` keeps.
const uint32_t* weight_panels(Capability level, const Tensor& weight, int64_t channels, int64_t groups, Words& made) {
  if (weight.scalar_type() == ScalarType::Int) return const_data<uint32_t>(weight);
  const Tensor w = row_major(weight);
  int64_t taps = 1;
  for (int64_t d = 2; d < w.dim(); ++d) taps *= w.size(d);
  const auto pack = [&](auto pointer) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(pointer)>>;
    const TapWeights<T> weights = {pointer, groups, w.size(0) / groups, channels, taps};
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
  const Counters counters = counters_of(call.step ? Counting::step_rows : Counting::differing, chosen);
  const int64_t words = words_of(call.numbers), panel = words * kPanelRows;
  const int64_t block_rows = std::max<int64_t>(1, kBlockBytes / (4 * std::max<int64_t>(panel, 1))) * kPanelRows;
  const int64_t pairs = (panels_of(call.features) + 1) / 2, blocks = (call.rows + block_rows - 1) / block_rows;
  const Features<A> features = features_of<A>(call.scale, call.bias);
  const double each = nanoseconds_of(chosen, std::min(block_rows, call.rows), kProductLanes, words);
  share_out(blocks * pairs, each, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / pairs * block_rows, feature = i % pairs * kProductLanes;
      const LaneRun run = {0, std::min<int64_t>(kProductLanes, call.features - feature), 0};
      const ProductBlock<T> block = {
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
    const Counters steps = counters_of(Counting::step_lanes, chosen);
    count_ones(steps, rows.get(), call.rows, words_of(in_features), ones.data());
  }
  dispatch_floating(op, "out", call.out, [&](auto type) {
    multiply_linear<typename decltype(type)::type>(chosen, call, rows.get(), lanes, step ? ones.data() : nullptr);
  });
  return call.out;
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
        chosen.level, TapWeights<T>{pointer, groups, call.features, channels, call.taps},
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
