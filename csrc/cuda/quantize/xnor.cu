// The weights of XNOR-Net, and the gradient of a magnitude-aware sign.
#include "cuda/quantize/groups.cuh"
#include "cuda/quantize/magnitudes.cuh"
#include "ops/library.h"
#include "ops/quantize/scaled.h"

namespace ste_ops {
namespace {

template <class T>
void launch_xnor_weight(const Launcher& launch, Type<T>, const ScaledWeights& call) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const T* w = const_data<T>(call.w);
  A* means = mutable_data<A>(call.statistic);
  const KeepMean<A> keep{means, groups.members(), 0};
  reduce_groups<Additive, T>(launch, groups, call.w, MagnitudeTerms<T>{w}, keep);
  map_in_groups(launch, ScaledSign{}, groups, static_cast<const A*>(means), w, mutable_data<T>(call.out));
}

std::tuple<Tensor, Tensor> xnor_weight_cuda(Tensor w, bool per_channel) {
  constexpr const char* op = "xnor_weight";
  const Launcher launch(w);
  const ScaledWeights call = prepare_weights(op, w, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { launch_xnor_weight(launch, type, call); });
  return {call.out, call.statistic};
}

template <class T>
void launch_mean_magnitude(const Launcher& launch, Type<T>, const Magnitudes& call) {
  using A = arithmetic_t<T>;
  const KeepMean<A> keep{mutable_data<A>(call.statistic), call.groups.members(), 0};
  reduce_groups<Additive, T>(launch, call.groups, call.w, MagnitudeTerms<T>{const_data<T>(call.w)}, keep);
}

Tensor mean_magnitude_cuda(Tensor w, bool per_channel) {
  constexpr const char* op = "mean_magnitude";
  const Launcher launch(w);
  const Magnitudes call = prepare_magnitudes(op, w, per_channel);
  dispatch_elements(op, "w", w, [&](auto type) { launch_mean_magnitude(launch, type, call); });
  return call.statistic;
}

// Moves: reads 2 * n * T, writes 0.
template <class T>
struct XnorTerms {
  const T *grad, *w;
  __device__ XnorTerms for_lanes(const int64_t*) const { return *this; }
  __device__ void operator()(int64_t begin, int64_t end, double* terms) const {
    Vector<T> g = read_vector(grad, begin, end, aligned16(grad + begin));
    Vector<T> v = read_vector(w, begin, end, aligned16(w + begin));
#pragma unroll
    for (int k = 0; k < Vector<T>::size; ++k) terms[k] = xnor_term(load(g.value[k]), load(v.value[k]));
  }
};

// Moves: reads groups * A, writes groups * 2 * A.
template <class A>
struct KeepXnorGroup {
  const A* means;
  XnorGroup<A>* parameters;
  int64_t members;
  __device__ void operator()(int64_t group, double total) const {
    parameters[group] = {means[group], mean_of<A>(total, members)};
  }
};

// Moves: reads 0, writes groups * A.
template <class A>
struct KeepSlope {
  A* slopes;
  int64_t members;
  __device__ void operator()(int64_t group, double total) const { slopes[group] = mean_of<A>(total, members); }
};

template <class T>
void launch_xnor_weight_backward(const Launcher& launch, Type<T>, const ScaledWeightsBackward& call) {
  using A = arithmetic_t<T>;
  using P = XnorGroup<A>;
  const Groups& groups = call.groups;
  const T *grad = const_data<T>(call.grad), *w = const_data<T>(call.w);
  const Tensor memory = new_parameters<P>(groups.count(), call.w);
  P* parameters = mutable_data<P>(memory);
  const KeepXnorGroup<A> keep{const_data<A>(call.statistic), parameters, groups.members()};
  reduce_groups<Additive, T>(launch, groups, call.w, XnorTerms<T>{grad, w}, keep);
  map_in_groups(launch, XnorBackward{}, groups, static_cast<const P*>(parameters), grad, w, mutable_data<T>(call.out));
}

Tensor xnor_weight_backward_cuda(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  constexpr const char* op = "xnor_weight_backward";
  const Launcher launch(w);
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, mean, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { launch_xnor_weight_backward(launch, type, call); });
  return call.out;
}

template <class T>
void launch_magnitude_aware_sign_backward(const Launcher& launch, Type<T>, const ScaledWeightsBackward& call) {
  map_in_groups(
      launch, MagnitudeAwareSignBackward{}, call.groups, const_data<arithmetic_t<T>>(call.statistic),
      const_data<T>(call.grad), const_data<T>(call.w), mutable_data<T>(call.out));
}

Tensor magnitude_aware_sign_backward_cuda(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  constexpr const char* op = "magnitude_aware_sign_backward";
  const Launcher launch(w);
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, mean, per_channel, 1);
  dispatch_elements(op, "w", w, [&](auto type) { launch_magnitude_aware_sign_backward(launch, type, call); });
  return call.out;
}

template <class T>
void launch_scaled_sign_backward(const Launcher& launch, Type<T>, const ScaledWeightsBackward& call, T* of_w) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const T *grad = const_data<T>(call.grad), *w = const_data<T>(call.w);
  map_in_groups(launch, TimesScale{}, groups, const_data<A>(call.statistic), grad, mutable_data<T>(call.out));
  if (of_w == nullptr) return;
  const Tensor memory = new_parameters<A>(groups.count(), call.w);
  A* slopes = mutable_data<A>(memory);
  reduce_groups<Additive, T>(launch, groups, call.w, XnorTerms<T>{grad, w}, KeepSlope<A>{slopes, groups.members()});
  map_in_groups(launch, ScaledSign{}, groups, static_cast<const A*>(slopes), w, of_w);
}

std::tuple<Tensor, Tensor> scaled_sign_backward_cuda(Tensor grad, Tensor w, Tensor mean, bool per_channel, bool held) {
  constexpr const char* op = "scaled_sign_backward";
  const Launcher launch(w);
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, mean, per_channel, 1);
  const Tensor of_w = new_gradient_of_mean(call, held);
  dispatch_elements(op, "w", w, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_scaled_sign_backward(launch, type, call, held ? nullptr : mutable_data<T>(of_w));
  });
  return {call.out, of_w};
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("xnor_weight", TORCH_BOX(&xnor_weight_cuda));
  m.impl("mean_magnitude", TORCH_BOX(&mean_magnitude_cuda));
  m.impl("xnor_weight_backward", TORCH_BOX(&xnor_weight_backward_cuda));
  m.impl("magnitude_aware_sign_backward", TORCH_BOX(&magnitude_aware_sign_backward_cuda));
  m.impl("scaled_sign_backward", TORCH_BOX(&scaled_sign_backward_cuda));
}

}  // namespace ste_ops
