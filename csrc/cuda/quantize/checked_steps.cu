// The steps of quantizers that compiled code computes with by itself.
#include "cuda/launch.cuh"
#include "ops/library.h"
#include "ops/quantize/uniform.h"

namespace ste_ops {
namespace {

constexpr int kThreads = 256;

// A step for each thread, of NaN where the scale is not valid. An offset is the third row.
// Moves: reads steps * A, writes rows * n * A.
template <class A>
__global__ void __launch_bounds__(kThreads) checked_steps_kernel(
    const A* scale, const A* offset, A* rows, int64_t count, int64_t scale_stride, int64_t offset_stride) {
  const int64_t c = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= count) return;
  const Step<A> step = step_of(scale[c * scale_stride], A(0));
  rows[c] = step.scale;
  rows[count + c] = step.inverse;
  if (offset != nullptr) rows[2 * count + c] = offset[c * offset_stride];
}

template <class A>
void launch_checked_steps(const Launcher& launch, const StepRows& call) {
  launch(
      checked_steps_kernel<A>, blocks_for(call.count, kThreads), kThreads, const_data<A>(call.scale),
      call.offset ? const_data<A>(*call.offset) : nullptr, mutable_data<A>(call.rows), call.count, call.scale_stride(),
      call.offset_stride());
}

Tensor checked_steps_cuda(Tensor scale, std::optional<Tensor> offset, bool wide, std::string op) {
  const Launcher launch(scale);
  const StepRows call(op.c_str(), scale, offset, wide);
  wide ? launch_checked_steps<double>(launch, call) : launch_checked_steps<float>(launch, call);
  return call.rows;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("checked_steps", TORCH_BOX(&checked_steps_cuda)); }

}  // namespace ste_ops
