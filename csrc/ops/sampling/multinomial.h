// What both backends of draws without replacement do around their loops.
#pragma once

#include "core/sampling/exponential.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// The number of a row of weights in a fault.
inline int64_t row_number(const Tensor& weights, int64_t row) { return weights.dim() == 1 ? -1 : row; }

// `draw(Type<T>, weights, seed, rows, n, out)` fills out with `num_samples` draws a row; weights are bits_t<T>.
template <class Draw>
Tensor draw_without_replacement(
    const Tensor& weights, const Tensor& seed, int64_t num_samples, const char* op, Draw&& draw) {
  check_weights(op, weights);
  check_one_seed(op, seed, weights, "weights");
  Distributions shape(weights);
  STD_TORCH_CHECK(
      num_samples >= 1 && num_samples <= shape.n, op, ": num_samples must be in [1, ", shape.n, "], got ", num_samples);
  const int64_t sizes[2] = {shape.rows, num_samples};
  Tensor out = empty_int64({sizes + 2 - weights.dim(), size_t(weights.dim())}, weights);
  if (shape.rows == 0) return out;
  Tensor dense = row_major(weights);
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    draw(
        type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), shape.rows, shape.n,
        static_cast<int64_t*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ste_ops
