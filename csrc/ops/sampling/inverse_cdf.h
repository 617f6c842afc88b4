// The call of draws by the inverse CDF, checked and allocated for the backends.
#pragma once

#include "core/sampling/inverse_cdf.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// `num_samples` draws from each row, and the row's total.
struct InverseCdfDraws {
  static constexpr const char* op = "inverse_cdf_sample";
  Weights weights;
  Tensor seed;
  int64_t num_samples;
  Tensor out, total;
};

inline InverseCdfDraws prepare_inverse_cdf_draws(const Tensor& x, const Tensor& seed, int64_t num_samples) {
  constexpr const char* op = InverseCdfDraws::op;
  const Weights weights(op, x);
  check_one_seed(op, seed, x, "weights");
  STE_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  return {weights, seed, num_samples, empty_draws(x, num_samples), empty_row_state(x)};
}

}  // namespace ste_ops
