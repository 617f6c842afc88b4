// What both backends of the draws of k out of n do around their loops.
#pragma once

#include "core/sampling/subset.h"
#include "ops/sampling/categorical.h"

namespace ste_ops {

inline void check_k(const char* op, int64_t k, int64_t n) {
  STD_TORCH_CHECK(k >= 1 && k <= n, op, ": k must be in [1, ", n, "], the number of categories, got ", k);
}

// `draw(Type<T>, like, shape, k, x, seed, out)`.
template <class Draw>
Tensor subset(const Tensor& logits, const Tensor& seed, int64_t k, Draw&& draw) {
  constexpr const char* op = "subset_ste";
  const RowShape shape = row_shape(op, logits, seed);
  check_k(op, k, shape.n);
  Tensor dense = row_major(logits), out = new_row_major(logits, logits.dim(), logits.scalar_type());
  if (shape.rows > 0) {
    dispatch_floating(op, "logits", dense, [&](auto type) {
      using T = typename decltype(type)::type;
      draw(
          type, dense, shape, k, static_cast<const T*>(dense.const_data_ptr()), unsigned_data(seed),
          static_cast<T*>(out.mutable_data_ptr()));
    });
  }
  return in_layout_of_input(logits, out);
}

// `pull(Type<T>, like, shape, k, inv_tau, grad, x, seed, out)`.
template <class Pull>
Tensor subset_backward(
    const Tensor& grad, const Tensor& logits, const Tensor& seed, int64_t k, double tau, Pull&& pull) {
  constexpr const char* op = "subset_backward";
  const RowShape shape = row_shape(op, logits, seed);
  check_like(op, "grad", grad, "logits", logits);
  check_k(op, k, shape.n);
  const double inv_tau = check_tau(op, tau);
  Tensor dense = row_major(logits), grads = row_major(grad);
  Tensor out = new_row_major(logits, logits.dim(), logits.scalar_type());
  if (shape.rows > 0) {
    dispatch_floating(op, "logits", dense, [&](auto type) {
      using T = typename decltype(type)::type;
      pull(
          type, dense, shape, k, arithmetic_t<T>(inv_tau), static_cast<const T*>(grads.const_data_ptr()),
          static_cast<const T*>(dense.const_data_ptr()), unsigned_data(seed), static_cast<T*>(out.mutable_data_ptr()));
    });
  }
  return in_layout_of_input(logits, out);
}

}  // namespace ste_ops
