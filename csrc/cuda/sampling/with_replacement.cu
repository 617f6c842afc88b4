// Draws with replacement: the launches of other operators, in one call.
#include "ops/sampling/with_replacement.h"

#include "cuda/sampling/host.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

Tensor multinomial_with_replacement_cuda(Tensor weights, Tensor seed, int64_t num_samples) {
  check_repeated_draws(weights, seed, num_samples);
  if (few_draws(Distributions(weights).n, num_samples)) {
    const auto [draws, total] = inverse_cdf_sample_cuda(weights, seed, num_samples);
    refuse_states_cuda(weights, total, kMultinomial);
    return draws;
  }
  const auto [table, capacity] = alias_table_cuda(weights);
  refuse_states_cuda(weights, capacity, kMultinomial);
  return alias_sample_cuda(table, capacity, seed, 0, num_samples, 1);
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("multinomial_with_replacement", TORCH_BOX(&multinomial_with_replacement_cuda)); }

}  // namespace ste_ops
