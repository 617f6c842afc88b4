// What both backends of the draws from softmax(logits) do around their loops.
#pragma once

#include <tuple>
#include <vector>

#include "core/sampling/categorical.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

inline RowShape row_shape(const char* op, const Tensor& logits, const Tensor& seed) {
  STD_TORCH_CHECK(logits.dim() > 0, op, ": logits must have at least one dimension, got none");
  const int64_t n = logits.size(logits.dim() - 1);
  STD_TORCH_CHECK(n > 0, op, ": logits must have at least one category, got none");
  const int64_t rows = logits.numel() / n, seeds = seed_rows(op, seed, logits, "logits");
  STD_TORCH_CHECK(seeds == 1 || logits.dim() > 1, op, ": one row of logits has one seed, got ", seeds);
  return RowShape(rows, n, rows > 0 ? rows / seeds : 1);
}

// Row-major, of the first `dims` sizes of x.
inline Tensor new_row_major(const Tensor& x, int64_t dims, ScalarType dtype) {
  std::vector<int64_t> sizes(dims), strides(dims);
  int64_t stride = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    sizes[d] = x.size(d);
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  return empty_strided({sizes.data(), size_t(dims)}, {strides.data(), size_t(dims)}, dtype, x);
}

// A row-major result in the layout that an operator promises: that of x where x is dense.
inline Tensor in_layout_of_input(const Tensor& x, const Tensor& result) {
  if (x.is_contiguous()) return result;
  Tensor out = torch::stable::empty_like(x);
  return torch::stable::copy_(out, result);
}

inline double check_tau(const char* op, double tau) {
  STD_TORCH_CHECK(tau >= 1e-30 && tau <= 1e30, op, ": tau must be in [1e-30, 1e30], got ", tau);
  return 1 / tau;
}

// `draw(Type<T>, like, shape, x, seed, out, index)`.
template <class Draw>
std::tuple<Tensor, Tensor> categorical(const Tensor& logits, const Tensor& seed, Draw&& draw) {
  constexpr const char* op = "categorical_ste";
  const RowShape shape = row_shape(op, logits, seed);
  Tensor dense = row_major(logits), out = new_row_major(logits, logits.dim(), logits.scalar_type());
  Tensor index = new_row_major(logits, logits.dim() - 1, ScalarType::Long);
  if (shape.rows > 0) {
    dispatch_floating(op, "logits", dense, [&](auto type) {
      using T = typename decltype(type)::type;
      draw(
          type, dense, shape, static_cast<const T*>(dense.const_data_ptr()), unsigned_data(seed),
          static_cast<T*>(out.mutable_data_ptr()), static_cast<int64_t*>(index.mutable_data_ptr()));
    });
  }
  return {in_layout_of_input(logits, out), index};
}

// `pull(Type<T>, like, shape, estimator, inv_tau, grad, x, seed, index, out)`.
template <class Pull>
Tensor categorical_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& seed, const Tensor& index, int64_t estimator, double tau,
    Pull&& pull) {
  constexpr const char* op = "categorical_backward";
  const RowShape shape = row_shape(op, logits, seed);
  check_like(op, "grad", grad, "logits", logits);
  STD_TORCH_CHECK(estimator >= 0 && estimator <= kReinMax, op, ": estimator must be 0, 1 or 2, got ", estimator);
  STD_TORCH_CHECK(
      estimator == kStraightThrough || (index.numel() == shape.rows && index.scalar_type() == ScalarType::Long &&
                                        index.is_contiguous() && index.device() == logits.device()),
      op, ": index must hold ", shape.rows, " int64 on logits' device");
  const double inv_tau = check_tau(op, tau);
  Tensor dense = row_major(logits), grads = row_major(grad);
  Tensor out = new_row_major(logits, logits.dim(), logits.scalar_type());
  if (shape.rows > 0) {
    dispatch_floating(op, "logits", dense, [&](auto type) {
      using T = typename decltype(type)::type;
      pull(
          type, dense, shape, Estimator(estimator), arithmetic_t<T>(inv_tau),
          static_cast<const T*>(grads.const_data_ptr()), static_cast<const T*>(dense.const_data_ptr()),
          unsigned_data(seed), static_cast<const int64_t*>(index.const_data_ptr()),
          static_cast<T*>(out.mutable_data_ptr()));
    });
  }
  return in_layout_of_input(logits, out);
}

// `fill(Type<A>, like, shape, seed, out)`: the noise that the draws of these logits take, in their arithmetic.
template <class Fill>
Tensor gumbel_noise(const Tensor& logits, const Tensor& seed, Fill&& fill) {
  constexpr const char* op = "gumbel_noise";
  const RowShape shape = row_shape(op, logits, seed);
  Tensor out = new_row_major(logits, logits.dim(), arithmetic_type(logits));
  if (shape.rows > 0) {
    dispatch_floating(op, "logits", logits, [&](auto type) {
      using A = arithmetic_t<typename decltype(type)::type>;
      fill(Type<A>{}, logits, shape, unsigned_data(seed), static_cast<A*>(out.mutable_data_ptr()));
    });
  }
  return out;
}

}  // namespace ste_ops
