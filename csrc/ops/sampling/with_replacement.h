// The call of draws with replacement, checked and allocated for the backends.
#pragma once

#include "core/sampling/inverse_cdf.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// What errors in the values of the weights call the operator.
constexpr const char* kMultinomial = "multinomial";

// `num_samples` draws from each row.
struct RepeatedDraws {
  static constexpr const char* op = "multinomial_with_replacement";
  Weights weights;
  Tensor seed;
  int64_t num_samples;
  Tensor out;
};

inline void check_repeated_draws(const Tensor& x, const Tensor& seed, int64_t num_samples) {
  constexpr const char* op = RepeatedDraws::op;
  check_weights(op, x);
  check_one_seed(op, seed, x, "weights");
  STE_CHECK(num_samples >= 1, op, ": num_samples must be >= 1, got ", num_samples);
}

inline RepeatedDraws prepare_repeated_draws(const Tensor& x, const Tensor& seed, int64_t num_samples) {
  check_repeated_draws(x, seed, num_samples);
  return {Weights(RepeatedDraws::op, x), seed, num_samples, empty_draws(x, num_samples)};
}

}  // namespace ste_ops
