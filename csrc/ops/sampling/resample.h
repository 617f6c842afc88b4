// What both backends of resampling do around their loops.
#pragma once

#include "core/sampling/resample.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

enum class Resampling { kSystematic, kStratified, kResidual };

// Most draws of a row: fewer than the units of its total.
constexpr int64_t kMostResampled = int64_t(1) << 40;

// What is found of a row: its total mass, 0 where every weight is zero, -1 - i where weight i is the first invalid one.
STE_HD int64_t resampled_total(const Row& row, int64_t n) {
  return row.invalid != 0 ? int64_t(row.invalid) - 1 - n : int64_t(row.total);
}

// `resample(Type<T>, like, weights, seed, rows, n, num_samples, out, total)` fills the last two and refuses the first
// row whose total is not positive; weights are bits_t<T>.
template <class Resample>
Tensor resampled(const char* op, const Tensor& weights, const Tensor& seed, int64_t num_samples, Resample&& resample) {
  check_weights(op, weights);
  check_one_seed(op, seed, weights, "weights");
  STD_TORCH_CHECK(
      num_samples >= 1 && num_samples <= kMostResampled, op, ": num_samples must be in [1, ", kMostResampled, "], got ",
      num_samples);
  Distributions shape(weights);
  Tensor dense = row_major(weights);
  int64_t sizes[2] = {shape.rows, num_samples};
  Tensor out = weights.dim() == 2 ? empty_int64({sizes, 2}, dense) : empty_int64({sizes + 1, 1}, dense);
  Tensor total = empty_row_state(dense);
  if (weights.numel() == 0) return out;
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    resample(
        type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), shape.rows, shape.n,
        num_samples, static_cast<int64_t*>(out.mutable_data_ptr()), static_cast<int64_t*>(total.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ste_ops
