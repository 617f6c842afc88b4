#include "cuda/sampling/fault.cuh"
#include "cuda/sampling/tiles.cuh"
#include "ops/library.h"
#include "ops/sampling/row_states.h"

namespace ste_ops {
namespace {

// One thread looks for the first row that is at fault.
__device__ int64_t first_fault(int64_t rows, const int64_t* states) {
  for (int64_t row = 0; row < rows; ++row) {
    if (states[row] <= 0) return row;
  }
  return -1;
}

// One block: copies the states, and reports the first row at fault.
// Moves: reads 8 * rows, writes 8 * rows.
template <class T>
__global__ void report_states_kernel(
    int64_t rows, int64_t n, bool one_row, const bits_t<T>* weights, const int64_t* states, int64_t* out,
    DeferredErrors errors) {
  bool fault = false;
  for (int64_t row = threadIdx.x; row < rows; row += blockDim.x) {
    out[row] = states[row];
    fault |= states[row] <= 0;
  }
  fault = block_sum(int(fault)) != 0;
  if (!fault || threadIdx.x != 0) return;
  int64_t row = first_fault(rows, states), state = states[row];
  double value = state < 0 ? double(load(bit_cast<T>(weights[row * n - 1 - state]))) : 0.0;
  errors.report(fault_of_state(state, one_row ? -1 : row, value));
}

Tensor refuse_states_cuda(Tensor weights, Tensor states, std::string op) {
  Launcher launch(weights);
  DeferredErrors errors(weights, permanent(op));
  return refuse_states(
      weights, states,
      [&](auto type, const auto* weights, int64_t rows, int64_t n, bool one_row, const int64_t* states, int64_t* out) {
        using T = typename decltype(type)::type;
        launch(report_states_kernel<T>, 1, kSamplingThreads, rows, n, one_row, weights, states, out, errors);
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("refuse_states", TORCH_BOX(&refuse_states_cuda));
}

}  // namespace ste_ops
