// Reports what operators have found wrong with rows of weights.
#include "ops/sampling/row_states.h"

#include "cuda/sampling/fault.cuh"
#include "cuda/sampling/host.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// One block: copies the states, and reports the first row at fault.
// Moves: reads 8 * rows, writes 8 * rows.
template <class T>
__global__ void report_states_kernel(
    int64_t rows, int64_t n, bool one_row, const bits_t<T>* weights, const int64_t* states, int64_t* out,
    DeferredErrors errors) {
  const int64_t row = first_fault(rows, [&](int64_t row) {
    const int64_t state = states[row];
    out[row] = state;
    return state <= 0;
  });
  if (row >= 0) errors.report(fault_of_state<T>(states[row], weights, n, row, one_row));
}

template <class T>
void check_states(const Launcher& launch, const DeferredErrors& errors, const RowStates& call) {
  const Weights& weights = call.weights;
  launch(
      report_states_kernel<T>, 1, kSamplingThreads, weights.rows, weights.n, weights.one_row, weights.bits<T>(),
      typed_data<int64_t>(call.states), mutable_typed_data<int64_t>(call.out), errors);
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
