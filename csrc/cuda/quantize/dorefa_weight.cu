// The weights of DoReFa-Net.
#include "cuda/quantize/groups.cuh"
#include "cuda/quantize/magnitudes.cuh"
#include "ops/library.h"
#include "ops/quantize/scaled.h"

namespace ste_ops {
namespace {

// Of the group of each lane.
template <class T>
struct LaneScales {
  arithmetic_t<T> exponential[Vector<T>::size], divisor[Vector<T>::size];
  __device__ LaneScales(const arithmetic_t<T>* largest, const int64_t* group) {
#pragma unroll
    for (int k = 0; k < Vector<T>::size; ++k) {
      const auto scale = DoReFaScale<arithmetic_t<T>>::of(largest[group[k]]);
      exponential[k] = scale.exponential;
      divisor[k] = scale.divisor;
    }
  }
};

// Writes the output, and counts the maxima.
// Moves: reads n * T + groups * A, writes n * T.
template <class T>
struct DoReFaTerms {
  DoReFaWeight f;
  const arithmetic_t<T>* largest;
  const T* w;
  T* out;

  struct Lanes {
    DoReFaTerms all;
    LaneScales<T> scales;
    __device__ void operator()(int64_t begin, int64_t end, double* terms) const {
      Vector<T> v = read_vector(all.w, begin, end, aligned16(all.w + begin));
#pragma unroll
      for (int k = 0; k < Vector<T>::size; ++k) {
        const arithmetic_t<T> x = load(v.value[k]), e = tanh_exponential(x);
        v.value[k] = store<T>(all.f(x, e, scales.divisor[k]));
        terms[k] = e == scales.exponential[k] ? 1 : 0;
      }
      write_vector(all.out, begin, end, aligned16(all.out + begin), v);
    }
  };
  __device__ Lanes for_lanes(const int64_t* group) const { return {*this, LaneScales<T>(largest, group)}; }
};

// What the gradient of the maximum is made of.
// Moves: reads 2 * n * T, writes 0.
template <class T>
struct DoReFaBackwardTerms {
  const T *grad, *w;
  __device__ DoReFaBackwardTerms for_lanes(const int64_t*) const { return *this; }
  __device__ void operator()(int64_t begin, int64_t end, double* terms) const {
    Vector<T> g = read_vector(grad, begin, end, aligned16(grad + begin));
    Vector<T> v = read_vector(w, begin, end, aligned16(w + begin));
#pragma unroll
    for (int k = 0; k < Vector<T>::size; ++k) {
      terms[k] = double(load(g.value[k])) * double(portable_tanh(load(v.value[k])));
    }
  }
};

template <class A>
struct DoReFaGroup {
  A exponential, reciprocal, taken;
};

// Moves: reads groups * 2 * A, writes groups * 3 * A.
template <class A>
struct KeepDoReFaGroup {
  const A *largest, *ties;
  DoReFaGroup<A>* parameters;
  __device__ void operator()(int64_t group, double total) const {
    const auto scale = DoReFaScale<A>::of(largest[group]);
    parameters[group] = {scale.exponential, scale.reciprocal, dorefa_taken(scale, total, double(ties[group]))};
  }
};

struct DoReFaBackward {
  template <class A>
  __device__ A operator()(A grad, A w, const DoReFaGroup<A>& group) const {
    const A t = portable_tanh(w);
    const A taken = tanh_exponential(w) == group.exponential ? group.taken : A(0);
    return dorefa_gradient_at_maximum(grad, t, group.reciprocal, taken);
  }
};

// statistic: max|w| of each group, then how many weights have its tanh.
template <class T>
void launch_dorefa_weight(const Launcher& launch, Type<T>, const DoReFaWeight& f, const ScaledWeights& call) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const T* w = const_data<T>(call.w);
  A* largest = mutable_data<A>(call.statistic);
  A* ties = largest + groups.count();
  const DoReFaTerms<T> terms{f, largest, w, mutable_data<T>(call.out)};
  reduce_groups<Maximum, T>(launch, groups, call.w, MagnitudeTerms<T>{w}, KeepTotal<A>{largest});
  reduce_groups<Additive, T>(launch, groups, call.w, terms, KeepTotal<A>{ties});
}

std::tuple<Tensor, Tensor> dorefa_weight_cuda(Tensor w, int64_t bits, bool per_channel) {
  constexpr const char* op = "dorefa_weight";
  const Launcher launch(w);
  const DoReFaWeight f{dorefa_levels(bits)};
  const ScaledWeights call = prepare_weights(op, w, per_channel, 2);
  dispatch_elements(op, "w", w, [&](auto type) { launch_dorefa_weight(launch, type, f, call); });
  return {call.out, call.statistic};
}

template <class T>
void launch_dorefa_weight_backward(const Launcher& launch, Type<T>, const ScaledWeightsBackward& call) {
  using A = arithmetic_t<T>;
  using P = DoReFaGroup<A>;
  const Groups& groups = call.groups;
  const T *grad = const_data<T>(call.grad), *w = const_data<T>(call.w);
  const A* largest = const_data<A>(call.statistic);
  const Tensor memory = new_parameters<P>(groups.count(), call.w);
  P* parameters = mutable_data<P>(memory);
  const KeepDoReFaGroup<A> keep{largest, largest + groups.count(), parameters};
  reduce_groups<Additive, T>(launch, groups, call.w, DoReFaBackwardTerms<T>{grad, w}, keep);
  map_in_groups(
      launch, DoReFaBackward{}, groups, static_cast<const P*>(parameters), grad, w, mutable_data<T>(call.out));
}

Tensor dorefa_weight_backward_cuda(Tensor grad, Tensor w, Tensor statistic, bool per_channel) {
  constexpr const char* op = "dorefa_weight_backward";
  const Launcher launch(w);
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, statistic, per_channel, 2);
  dispatch_elements(op, "w", w, [&](auto type) { launch_dorefa_weight_backward(launch, type, call); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("dorefa_weight", TORCH_BOX(&dorefa_weight_cuda));
  m.impl("dorefa_weight_backward", TORCH_BOX(&dorefa_weight_backward_cuda));
}

}  // namespace ste_ops
