// The calls of the draws from softmax(logits), checked and allocated for the backends.
#pragma once

#include "core/sampling/categorical.h"
#include "ops/layout.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

inline RowShape row_shape(const char* op, const Tensor& logits, const Tensor& seed) {
  STE_CHECK(logits.dim() > 0, op, ": logits must have at least one dimension, got none");
  const int64_t n = logits.size(logits.dim() - 1);
  STE_CHECK(n > 0, op, ": logits must have at least one category, got none");
  const int64_t rows = logits.numel() / n, seeds = seed_rows(op, seed, logits, "logits");
  STE_CHECK(seeds == 1 || logits.dim() > 1, op, ": one row of logits has one seed, got ", seeds);
  return RowShape(rows, n, rows > 0 ? rows / seeds : 1);
}

// Logits as the backends take them, row-major, and the seeds of their rows.
struct Logits {
  RowShape shape;
  Tensor dense, seed;
  Logits(const char* op, const Tensor& logits, const Tensor& seed)
      : shape(row_shape(op, logits, seed)), dense(row_major(logits)), seed(seed) {}

  // Row-major, one number for each logit.
  Tensor empty_result(ScalarType dtype) const { return new_row_major(dense, dense.dim(), dtype); }
};

// Calls f(Type<T>{}) for the dtype of the logits, if there are any.
template <class F>
void dispatch_logits(const char* op, const Logits& logits, F&& f) {
  if (logits.shape.rows > 0) dispatch_floating(op, "logits", logits.dense, f);
}

inline double check_tau(const char* op, double tau) {
  STE_CHECK(tau >= 1e-30 && tau <= 1e30, op, ": tau must be in [1e-30, 1e30], got ", tau);
  return 1 / tau;
}

// One draw from each row: its one-hot vector in `out`, its number in `index`.
struct CategoricalDraws {
  static constexpr const char* op = "categorical_ste";
  Logits logits;
  Tensor out, index;

  CategoricalDraws(const Tensor& x, const Tensor& seed)
      : logits(op, x, seed),
        out(logits.empty_result(x.scalar_type())),
        index(new_row_major(x, x.dim() - 1, ScalarType::Long)) {}
};

// The gradient `out` of the logits of draws, whose numbers are `index`.
struct CategoricalGradient {
  static constexpr const char* op = "categorical_backward";
  Logits logits;
  Tensor grad, index;
  Estimator estimator;
  double inv_tau;
  Tensor out;
};

inline CategoricalGradient prepare_categorical_gradient(
    const Tensor& grad, const Tensor& x, const Tensor& seed, const Tensor& index, int64_t estimator, double tau) {
  constexpr const char* op = CategoricalGradient::op;
  const Logits logits(op, x, seed);
  check_like(op, "grad", grad, "logits", x);
  STE_CHECK(estimator >= 0 && estimator <= kReinMax, op, ": estimator must be 0, 1 or 2, got ", estimator);
  const bool one_for_each_row = index.numel() == logits.shape.rows && index.scalar_type() == ScalarType::Long &&
      index.is_contiguous() && index.device() == x.device();
  STE_CHECK(
      estimator == kStraightThrough || one_for_each_row, op, ": index must hold ", logits.shape.rows,
      " int64 on logits' device");
  const double inv_tau = check_tau(op, tau);
  return {logits, row_major(grad), index, Estimator(estimator), inv_tau, logits.empty_result(x.scalar_type())};
}

// The noise that the draws of these logits take, in their arithmetic.
struct GumbelNoise {
  static constexpr const char* op = "gumbel_noise";
  Logits logits;
  Tensor out;

  GumbelNoise(const Tensor& x, const Tensor& seed)
      : logits(op, x, seed), out(logits.empty_result(arithmetic_type(x))) {}
};

}  // namespace ste_ops
