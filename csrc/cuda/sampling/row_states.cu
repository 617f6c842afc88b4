// Reports what operators have found wrong with rows of weights.
#include "ops/sampling/row_states.h"

#include "cuda/sampling/fault.cuh"
#include "cuda/sampling/host.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Copies the states as it looks at them.
// Moves: reads 8 * rows, writes 8 * rows.
struct CopiedState {
  const int64_t* states;
  int64_t* out;
  __device__ bool operator()(int64_t row) const { return (out[row] = states[row]) <= 0; }
};

template <class T>
void check_states(const Launcher& launch, const DeferredErrors& errors, const RowStates& call) {
  const Weights& weights = call.weights;
  const int64_t* states = typed_data<int64_t>(call.states);
  report_first_row(
      launch, call.states, weights.rows, CopiedState{states, mutable_typed_data<int64_t>(call.out)},
      ReportState<T>{weights.bits<T>(), states, weights.n, weights.one_row}, errors);
}

}  // namespace

Tensor refuse_states_cuda(Tensor weights, Tensor states, std::string op) {
  Launcher launch(weights);
  DeferredErrors errors(weights, permanent(op));
  const RowStates call = prepare_row_states(weights, states);
  dispatch_weights(
      call.op, call.weights, [&](auto type) { check_states<typename decltype(type)::type>(launch, errors, call); });
  return call.out;
}

STE_OPS_CUDA_IMPL(m) { m.impl("refuse_states", TORCH_BOX(&refuse_states_cuda)); }

}  // namespace ste_ops
