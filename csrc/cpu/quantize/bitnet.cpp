// The weights and the activations of BitNet b1.58.
#include "cpu/quantize/magnitudes.h"
#include "ops/library.h"
#include "ops/quantize/scaled.h"

namespace ste_ops {
namespace {

template <class T>
void bitnet_weight_loop(Type<T>, const ScaledWeights& call) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const T* w = const_data<T>(call.w);
  A* scales = mutable_data<A>(call.statistic);
  const std::vector<double> totals = reduce_magnitudes<Additive>(groups, w);
  for (int64_t g = 0; g < groups.count(); ++g) {
    scales[g] = at_least(mean_of<A>(totals[g], groups.members()), A(kLeastBitNetScale));
  }
  map_in_groups(BitNetWeight{}, groups, scales, w, mutable_data<T>(call.out));
}

Tensor bitnet_weight_cpu(Tensor w, bool per_channel) {
  constexpr const char* op = "bitnet_weight";
  const ScaledWeights call = prepare_weights(op, w, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { bitnet_weight_loop(type, call); });
  return call.out;
}

template <class A>
struct BitNetStepOf {
  double levels;
  A operator()(int64_t, double largest) const { return bitnet_step<A>(largest, levels); }
};

template <class T>
void bitnet_activation_loop(Type<T>, double levels, const Elementwise& call) {
  using A = arithmetic_t<T>;
  const T* x = const_data<T>(call.x);
  const MapOne<BitNetActivation, T, A> map{{levels}, x, mutable_data<T>(call.out)};
  reduce_and_visit<Maximum, A>(groups_of_tokens(call.x), MagnitudeTerm<T>{x}, map, BitNetStepOf<A>{levels});
}

Tensor bitnet_activation_cpu(Tensor x, int64_t bits) {
  const double levels = bitnet_levels(bits);
  const Elementwise call(x);
  dispatch_elements("bitnet_activation", "x", x, [&](auto type) { bitnet_activation_loop(type, levels, call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("bitnet_weight", TORCH_BOX(&bitnet_weight_cpu));
  m.impl("bitnet_activation", TORCH_BOX(&bitnet_activation_cpu));
}

}  // namespace ste_ops
