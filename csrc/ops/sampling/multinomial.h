// The call of draws without replacement, checked and allocated for the backends.
#pragma once

#include <string>

#include "core/sampling/exponential.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// `num_samples` distinct draws from each row. Errors call the operator `op`.
struct DistinctDraws {
  std::string op;
  Weights weights;
  Tensor seed;
  int64_t num_samples;
  Tensor out;
};

inline DistinctDraws prepare_distinct_draws(
    const Tensor& x, const Tensor& seed, int64_t num_samples, const std::string& name) {
  const char* op = name.c_str();
  const Weights weights(op, x);
  check_one_seed(op, seed, x, "weights");
  STE_CHECK(
      num_samples >= 1 && num_samples <= weights.n, op, ": num_samples must be in [1, ", weights.n, "], got ",
      num_samples);
  return {name, weights, seed, num_samples, empty_draws(x, num_samples)};
}

}  // namespace ste_ops
