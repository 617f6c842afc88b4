// The weights of XNOR-Net, and the gradient of a magnitude-aware sign.
#include "cpu/quantize/magnitudes.h"
#include "ops/library.h"
#include "ops/quantize/scaled.h"

namespace ste_ops {
namespace {

template <class A>
struct KeepMean {
  A* means;
  int64_t members;
  A operator()(int64_t group, double total) const { return means[group] = mean_of<A>(total, members); }
};

template <class T>
void xnor_weight_loop(Type<T>, const ScaledWeights& call) {
  using A = arithmetic_t<T>;
  const T* w = const_data<T>(call.w);
  const MapOne<ScaledSign, T, A> map{{}, w, mutable_data<T>(call.out)};
  const KeepMean<A> keep{mutable_data<A>(call.statistic), call.groups.members()};
  reduce_and_visit<Additive, A>(call.groups, MagnitudeTerm<T>{w}, map, keep);
}

std::tuple<Tensor, Tensor> xnor_weight_cpu(Tensor w, bool per_channel) {
  constexpr const char* op = "xnor_weight";
  const ScaledWeights call = prepare_weights(op, w, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { xnor_weight_loop(type, call); });
  return {call.out, call.statistic};
}

template <class T>
void mean_magnitude_loop(Type<T>, const Groups& groups, const Tensor& w, const Tensor& means) {
  using A = arithmetic_t<T>;
  const std::vector<double> totals = reduce_magnitudes<Additive>(groups, const_data<T>(w));
  const KeepMean<A> keep{mutable_data<A>(means), groups.members()};
  for (int64_t g = 0; g < groups.count(); ++g) keep(g, totals[g]);
}

Tensor mean_magnitude_cpu(Tensor w, bool per_channel) {
  constexpr const char* op = "mean_magnitude";
  const Magnitudes call = prepare_magnitudes(op, w, per_channel);
  dispatch_elements(op, "w", w, [&](auto type) { mean_magnitude_loop(type, call.groups, call.w, call.statistic); });
  return call.statistic;
}

template <class T>
struct XnorTerm {
  const T *grad, *w;
  STE_OPS_INLINE double operator()(int64_t i, int64_t) const { return xnor_term(load(grad[i]), load(w[i])); }
};

template <class A>
struct XnorGroupOf {
  const A* means;
  int64_t members;
  XnorGroup<A> operator()(int64_t group, double total) const { return {means[group], mean_of<A>(total, members)}; }
};

template <class T>
void xnor_weight_backward_loop(Type<T>, const ScaledWeightsBackward& call) {
  using A = arithmetic_t<T>;
  const T *grad = const_data<T>(call.grad), *w = const_data<T>(call.w);
  const MapTwo<XnorBackward, T, XnorGroup<A>> map{{}, grad, w, mutable_data<T>(call.out)};
  const XnorGroupOf<A> group_of{const_data<A>(call.statistic), call.groups.members()};
  reduce_and_visit<Additive, A>(call.groups, XnorTerm<T>{grad, w}, map, group_of);
}

Tensor xnor_weight_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  constexpr const char* op = "xnor_weight_backward";
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, mean, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { xnor_weight_backward_loop(type, call); });
  return call.out;
}

template <class T>
void magnitude_aware_sign_backward_loop(Type<T>, const ScaledWeightsBackward& call) {
  map_in_groups(
      MagnitudeAwareSignBackward{}, call.groups, const_data<arithmetic_t<T>>(call.statistic), const_data<T>(call.grad),
      const_data<T>(call.w), mutable_data<T>(call.out));
}

Tensor magnitude_aware_sign_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  constexpr const char* op = "magnitude_aware_sign_backward";
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, mean, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { magnitude_aware_sign_backward_loop(type, call); });
  return call.out;
}

template <class A>
struct MeanOf {
  int64_t members;
  A operator()(int64_t, double total) const { return mean_of<A>(total, members); }
};

template <class T>
void scaled_sign_backward_loop(Type<T>, const ScaledWeightsBackward& call, T* of_w) {
  using A = arithmetic_t<T>;
  const T *grad = const_data<T>(call.grad), *w = const_data<T>(call.w);
  map_in_groups(TimesScale{}, call.groups, const_data<A>(call.statistic), grad, mutable_data<T>(call.out));
  if (of_w == nullptr) return;
  const MapOne<ScaledSign, T, A> map{{}, w, of_w};
  reduce_and_visit<Additive, A>(call.groups, XnorTerm<T>{grad, w}, map, MeanOf<A>{call.groups.members()});
}

std::tuple<Tensor, Tensor> scaled_sign_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel, bool held) {
  constexpr const char* op = "scaled_sign_backward";
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, mean, per_channel, 1);
  const Tensor of_w = new_gradient_of_mean(call, held);
  dispatch_elements(op, "w", w, [&](auto type) {
    using T = typename decltype(type)::type;
    scaled_sign_backward_loop(type, call, held ? nullptr : mutable_data<T>(of_w));
  });
  return {call.out, of_w};
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("xnor_weight", TORCH_BOX(&xnor_weight_cpu));
  m.impl("mean_magnitude", TORCH_BOX(&mean_magnitude_cpu));
  m.impl("xnor_weight_backward", TORCH_BOX(&xnor_weight_backward_cpu));
  m.impl("magnitude_aware_sign_backward", TORCH_BOX(&magnitude_aware_sign_backward_cpu));
  m.impl("scaled_sign_backward", TORCH_BOX(&scaled_sign_backward_cpu));
}

}  // namespace ste_ops
