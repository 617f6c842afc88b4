// The calls of resampling, checked and allocated for the backends.
#pragma once

#include "core/sampling/resample.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

enum class Resampling { kSystematic, kStratified, kResidual };

// Most draws of a row: fewer than the units of its total.
constexpr int64_t kMostResampled = int64_t(1) << 40;

// `num_samples` ancestors for each row. A backend fills `total` too, and refuses the first row whose total is not
// positive.
struct ResampleCall {
  const char* op;
  Resampling scheme;
  Weights weights;
  Tensor seed;
  int64_t num_samples;
  Tensor out, total;
};

inline ResampleCall prepare_resample(
    const char* op, Resampling scheme, const Tensor& x, const Tensor& seed, int64_t num_samples) {
  const Weights weights(op, x);
  check_one_seed(op, seed, x, "weights");
  STE_CHECK(
      num_samples >= 1 && num_samples <= kMostResampled, op, ": num_samples must be in [1, ", kMostResampled, "], got ",
      num_samples);
  return {op, scheme, weights, seed, num_samples, empty_draws(x, num_samples), empty_row_state(x)};
}

}  // namespace ste_ops
