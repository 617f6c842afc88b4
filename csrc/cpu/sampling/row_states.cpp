#include "ops/sampling/row_states.h"

#include <algorithm>

#include "ops/library.h"

namespace ste_ops {
namespace {

Tensor refuse_states_cpu(Tensor weights, Tensor states, std::string op) {
  return refuse_states(
      weights, states,
      [&](auto type, const auto* weights, int64_t rows, int64_t n, bool one_row, const int64_t* states, int64_t* out) {
        using T = typename decltype(type)::type;
        for (int64_t row = 0; row < rows; ++row) {
          int64_t state = out[row] = states[row];
          if (state > 0) continue;
          double value = state < 0 ? double(load(bit_cast<T>(weights[row * n - 1 - state]))) : 0.0;
          refuse(op, fault_of_state(state, one_row ? -1 : row, value));
        }
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("refuse_states", TORCH_BOX(&refuse_states_cpu));
}

}  // namespace ste_ops
