// The weights and the activations of BitNet b1.58.
#include "cuda/quantize/groups.cuh"
#include "cuda/quantize/magnitudes.cuh"
#include "ops/library.h"
#include "ops/quantize/scaled.h"

namespace ste_ops {
namespace {

template <class T>
void launch_bitnet_weight(const Launcher& launch, Type<T>, const ScaledWeights& call) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const T* w = const_data<T>(call.w);
  A* scales = mutable_data<A>(call.statistic);
  const KeepMean<A> keep{scales, groups.members(), kLeastBitNetScale};
  reduce_groups<Additive, T>(launch, groups, call.w, MagnitudeTerms<T>{w}, keep);
  map_in_groups(launch, BitNetWeight{}, groups, static_cast<const A*>(scales), w, mutable_data<T>(call.out));
}

Tensor bitnet_weight_cuda(Tensor w, bool per_channel) {
  constexpr const char* op = "bitnet_weight";
  const Launcher launch(w);
  const ScaledWeights call = prepare_weights(op, w, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { launch_bitnet_weight(launch, type, call); });
  return call.out;
}

// Moves: reads 0, writes groups * A.
template <class A>
struct KeepStep {
  A* steps;
  double levels;
  __device__ void operator()(int64_t group, double total) const { steps[group] = bitnet_step<A>(total, levels); }
};

template <class T>
void launch_bitnet_activation(const Launcher& launch, Type<T>, double levels, const Elementwise& call) {
  using A = arithmetic_t<T>;
  const Groups groups = groups_of_tokens(call.x);
  const T* x = const_data<T>(call.x);
  const Tensor memory = new_statistic(call.x, 1, groups.count());
  A* steps = mutable_data<A>(memory);
  reduce_groups<Maximum, T>(launch, groups, call.x, MagnitudeTerms<T>{x}, KeepStep<A>{steps, levels});
  map_in_groups(launch, BitNetActivation{levels}, groups, static_cast<const A*>(steps), x, mutable_data<T>(call.out));
}

Tensor bitnet_activation_cuda(Tensor x, int64_t bits) {
  const Launcher launch(x);
  const double levels = bitnet_levels(bits);
  const Elementwise call(x);
  dispatch_elements(
      "bitnet_activation", "x", x, [&](auto type) { launch_bitnet_activation(launch, type, levels, call); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("bitnet_weight", TORCH_BOX(&bitnet_weight_cuda));
  m.impl("bitnet_activation", TORCH_BOX(&bitnet_activation_cuda));
}

}  // namespace ste_ops
