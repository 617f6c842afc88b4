// Raises what operators have found wrong with rows of weights.
#include "ops/sampling/row_states.h"

#include "ops/library.h"

namespace ste_ops {
namespace {

// Copies the states, up to the first that tells a fault.
template <class T>
void check_states(const RowStates& call, const std::string& op) {
  const Weights& weights = call.weights;
  const bits_t<T>* bits = weights.bits<T>();
  const int64_t* states = typed_data<int64_t>(call.states);
  int64_t* out = mutable_typed_data<int64_t>(call.out);
  for (int64_t row = 0; row < weights.rows; ++row) {
    out[row] = states[row];
    if (states[row] <= 0) refuse(op, fault_of_state<T>(states[row], bits, weights.n, row, weights.one_row));
  }
}

Tensor refuse_states_cpu(Tensor weights, Tensor states, std::string op) {
  const RowStates call = prepare_row_states(weights, states);
  dispatch_weights(call.op, call.weights, [&](auto type) { check_states<typename decltype(type)::type>(call, op); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("refuse_states", TORCH_BOX(&refuse_states_cpu)); }

}  // namespace ste_ops
