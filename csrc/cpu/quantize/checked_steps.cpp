// The steps of quantizers that compiled code computes with by itself.
#include "cpu/quantize/steps.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class A>
void fill_steps(const char* op, const StepRows& call) {
  const A *scale = const_data<A>(call.scale), *offset = call.offset ? const_data<A>(*call.offset) : nullptr;
  A* rows = mutable_data<A>(call.rows);
  for (int64_t c = 0; c < call.count; ++c) {
    const A zero_point = offset ? offset[c * call.offset_stride()] : A(0);
    const Step<A> step = checked_step(op, scale[c * call.scale_stride()], zero_point, offset != nullptr, c);
    rows[c] = step.scale;
    rows[call.count + c] = step.inverse;
    if (offset) rows[2 * call.count + c] = step.zero_point;
  }
}

Tensor checked_steps_cpu(Tensor scale, std::optional<Tensor> offset, bool wide, std::string op) {
  const StepRows call(op.c_str(), scale, offset, wide);
  wide ? fill_steps<double>(op.c_str(), call) : fill_steps<float>(op.c_str(), call);
  return call.rows;
}

}  // namespace

STE_OPS_CPU_IMPL(m) { m.impl("checked_steps", TORCH_BOX(&checked_steps_cpu)); }

}  // namespace ste_ops
