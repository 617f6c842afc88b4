// Calls of the quantizers that scale by a statistic: groups, checks, layout, allocation.
#pragma once

#include <tuple>

#include "core/groups.h"
#include "core/quantize/scaled.h"
#include "ops/checks.h"

namespace ste_ops {

// The groups of `dense`, which has no gaps: one for each index of dimension 0, or one of all.
inline Groups groups_of_weights(const Tensor& dense, bool per_channel) {
  if (!per_channel) return whole_tensor(dense.numel());
  return channels(dense.numel(), dense.size(0), dense.stride(0));
}

// One for each line along the last dimension.
inline Groups groups_of_tokens(const Tensor& dense) {
  if (dense.dim() == 0) return tokens(dense.numel(), 1, 1);
  return tokens(dense.numel(), dense.size(dense.dim() - 1), dense.stride(dense.dim() - 1));
}

inline int64_t group_count(const char* op, const Tensor& w, bool per_channel) {
  STE_CHECK(!per_channel || w.dim() > 0, op, ": a scale for each channel needs a dimension, got none");
  return per_channel ? w.size(0) : 1;
}

// `kinds` numbers for each group, in the arithmetic of x.
inline Tensor new_statistic(const Tensor& x, int64_t kinds, int64_t groups) {
  return empty_vector(kinds * groups, arithmetic_type(x), x);
}

// Weights and the mean magnitude of each group, to fill.
struct Magnitudes {
  Tensor statistic, w;
  Groups groups;
};

inline Magnitudes prepare_magnitudes(const char* op, const Tensor& w, bool per_channel) {
  Tensor statistic = new_statistic(w, 1, group_count(op, w, per_channel));
  if (w.numel() == 0) torch::stable::zero_(statistic);
  const Tensor dense = dense_of(w);
  return {statistic, dense, groups_of_weights(dense, per_channel)};
}

// Weights, the tensor to fill in w's memory order, and the numbers of its groups.
struct ScaledWeights {
  Tensor statistic, out, w;
  Groups groups;
};

inline ScaledWeights prepare_weights(const char* op, const Tensor& w, bool per_channel, int64_t kinds) {
  Tensor statistic = new_statistic(w, kinds, group_count(op, w, per_channel));
  if (w.numel() == 0) torch::stable::zero_(statistic);
  const Elementwise call(w);
  return {statistic, call.out, call.x, groups_of_weights(call.out, per_channel)};
}

// The same with the incoming gradient, and numbers that the forward has left.
struct ScaledWeightsBackward {
  Tensor statistic, out, w, grad;
  Groups groups;
};

inline ScaledWeightsBackward prepare_weights_backward(
    const char* op, const Tensor& grad, const Tensor& w, const Tensor& statistic, bool per_channel, int64_t kinds) {
  check_like(op, "grad", grad, "w", w);
  STE_CHECK(statistic.device() == w.device(), op, ": w and the statistic must be on one device");
  const int64_t numbers = kinds * group_count(op, w, per_channel);
  const ScalarType dtype = arithmetic_type(w);
  STE_CHECK(
      statistic.numel() == numbers && statistic.is_contiguous() && statistic.scalar_type() == dtype, op,
      ": the statistic must be ", numbers, " contiguous numbers of ", torch::headeronly::toString(dtype), ", got ",
      statistic.numel(), " of ", torch::headeronly::toString(statistic.scalar_type()));
  const Elementwise call(w);
  return {statistic, call.out, call.x, in_layout_of(call.out, grad), groups_of_weights(call.out, per_channel)};
}

// What w gets through its mean: as the gradient of the sign, or nothing where the mean is held.
inline Tensor new_gradient_of_mean(const ScaledWeightsBackward& call, bool held) {
  return held ? empty_vector(0, call.w.scalar_type(), call.w) : new_like(call.w);
}

// 2^bits - 1.
inline double dorefa_levels(int64_t bits) {
  STE_CHECK(bits >= 2 && bits <= 24, "dorefa_weight: bits must be in [2, 24] here, got ", bits);
  return double((int64_t(1) << bits) - 1);
}

// 2^(bits - 1) - 1.
inline double bitnet_levels(int64_t bits) {
  STE_CHECK(bits >= 2 && bits <= 24, "bitnet_activation: bits must be in [2, 24], got ", bits);
  return double((int64_t(1) << (bits - 1)) - 1);
}

}  // namespace ste_ops
