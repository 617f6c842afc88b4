// Host functions of operators that another one calls.
#pragma once

#include <string>
#include <tuple>

#include "ops/layout.h"

namespace ste_ops {

std::tuple<Tensor, Tensor> alias_table_cuda(Tensor weights);
Tensor alias_sample_cuda(
    Tensor table, Tensor capacity, Tensor seed, int64_t start, int64_t num_samples, int64_t stride);
std::tuple<Tensor, Tensor> inverse_cdf_sample_cuda(Tensor weights, Tensor seed, int64_t num_samples);
Tensor refuse_states_cuda(Tensor weights, Tensor states, std::string op);

}  // namespace ste_ops
