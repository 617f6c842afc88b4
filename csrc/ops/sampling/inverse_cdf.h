// What both backends of draws by the inverse CDF do around their loops.
#pragma once

#include <tuple>

#include "core/sampling/inverse_cdf.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// `draw(Type<T>, like, weights, seed, rows, n, num_samples, out, total)` fills the last two; weights are bits_t<T>.
template <class Draw>
std::tuple<Tensor, Tensor> inverse_cdf_sample(
    const Tensor& weights, const Tensor& seed, int64_t num_samples, Draw&& draw) {
  constexpr const char* op = "inverse_cdf_sample";
  check_weights(op, weights);
  check_one_seed(op, seed, weights, "weights");
  STD_TORCH_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  Distributions shape(weights);
  Tensor dense = row_major(weights);
  int64_t sizes[2] = {shape.rows, num_samples};
  Tensor out = weights.dim() == 2 ? empty_int64({sizes, 2}, dense) : empty_int64({sizes + 1, 1}, dense);
  Tensor total = empty_row_state(dense);
  if (weights.numel() == 0) return {out, total};
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    draw(
        type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), shape.rows, shape.n,
        num_samples, static_cast<int64_t*>(out.mutable_data_ptr()), static_cast<int64_t*>(total.mutable_data_ptr()));
  });
  return {out, total};
}

}  // namespace ste_ops
