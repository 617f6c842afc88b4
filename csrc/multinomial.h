// What both backends of draws without replacement do around their loops.
#pragma once

#include <tuple>

#include "core/exponential.h"
#include "sampling.h"

namespace ste_ops {

// `fill(Type<T>, like, weights, seed, rows, n, keys, positive)` fills the last two; weights are bits_t<T>.
template <class Fill>
std::tuple<Tensor, Tensor> exponential_keys(const Tensor& weights, const Tensor& seed, Fill&& fill) {
  constexpr const char* op = "exponential_keys";
  check_weights(op, weights);
  check_seed(op, seed, weights, "weights");
  STD_TORCH_CHECK(seed.numel() == 1, op, ": seed must have one element, got ", seed.numel());
  Distributions shape(weights);
  Tensor dense = row_major(weights);
  const int64_t strides[2] = {shape.n, 1};
  Tensor keys =
      empty_strided(dense.sizes(), {strides + 2 - dense.dim(), size_t(dense.dim())}, ScalarType::Double, dense);
  Tensor positive = empty_row_state(dense);
  if (weights.numel() == 0) return {keys, positive};
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    fill(type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), shape.rows, shape.n,
         static_cast<double*>(keys.mutable_data_ptr()), static_cast<int64_t*>(positive.mutable_data_ptr()));
  });
  return {keys, positive};
}

}  // namespace ste_ops
