// The calls of the draws of k out of n, checked and allocated for the backends.
#pragma once

#include "core/sampling/subset.h"
#include "ops/sampling/categorical.h"

namespace ste_ops {

inline void check_k(const char* op, int64_t k, int64_t n) {
  STE_CHECK(k >= 1 && k <= n, op, ": k must be in [1, ", n, "], the number of categories, got ", k);
}

// k distinct draws from each row: their k-hot vector in `out`.
struct SubsetDraws {
  static constexpr const char* op = "subset_ste";
  Logits logits;
  int64_t k;
  Tensor out;
};

inline SubsetDraws prepare_subset_draws(const Tensor& x, const Tensor& seed, int64_t k) {
  const Logits logits(SubsetDraws::op, x, seed);
  check_k(SubsetDraws::op, k, logits.shape.n);
  return {logits, k, logits.empty_result(x.scalar_type())};
}

// The gradient `out` of the logits.
struct SubsetGradient {
  static constexpr const char* op = "subset_backward";
  Logits logits;
  Tensor grad;
  int64_t k;
  double inv_tau;
  Tensor out;
};

inline SubsetGradient prepare_subset_gradient(
    const Tensor& grad, const Tensor& x, const Tensor& seed, int64_t k, double tau) {
  constexpr const char* op = SubsetGradient::op;
  const Logits logits(op, x, seed);
  check_like(op, "grad", grad, "logits", x);
  check_k(op, k, logits.shape.n);
  const double inv_tau = check_tau(op, tau);
  return {logits, row_major(grad), k, inv_tau, logits.empty_result(x.scalar_type())};
}

}  // namespace ste_ops
