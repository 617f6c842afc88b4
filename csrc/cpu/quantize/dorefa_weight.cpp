// The weights of DoReFa-Net.
#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/quantize/magnitudes.h"
#include "ops/library.h"
#include "ops/quantize/scaled.h"

namespace ste_ops {
namespace {

// The parameters of the lanes of a task: one, or one for each lane.
template <class P>
struct OneParameter {
  P parameter;
  STE_OPS_INLINE P at(int64_t) const { return parameter; }
};
template <class P>
struct LaneParameters {
  const P* parameters;
  STE_OPS_INLINE P at(int64_t lane) const { return parameters[lane]; }
};

// Sums the terms of make_term(parameters of the task's lanes) over each group.
template <class T, class P, class MakeTerm>
std::vector<double> reduce_with(const Groups& groups, const std::vector<P>& parameters, const MakeTerm& make_term) {
  using A = arithmetic_t<T>;
  // float16 conversions beside a tanh vectorize in the rows of reduce_groups alone.
  if (!std::is_same_v<T, Half> && are_runs(groups)) {
    return reduce_runs<Additive, A>(
        groups, [&](int64_t group) { return make_term(OneParameter<P>{parameters[group]}); });
  }
  std::vector<double> totals(groups.count());
  if (rows_hold_one_group(groups)) {
    reduce_groups<Additive, A>(groups, totals.data(), [&](const ReduceTask& task) {
      return make_term(OneParameter<P>{parameters[task.batch * groups.size + task.first]});
    });
  } else {
    reduce_groups<Additive, A>(groups, totals.data(), [&](const ReduceTask& task) {
      static thread_local P of_lane[kReduceSpan];
      for (int64_t lane = 0; lane < task.width && lane < task.length; ++lane) {
        of_lane[lane] = parameters[task.batch * groups.size + (task.first + lane / groups.inner) % groups.size];
      }
      return make_term(LaneParameters<P>{of_lane});
    });
  }
  return totals;
}

template <class A>
std::vector<DoReFaScale<A>> dorefa_scales(const A* largest, int64_t count) {
  std::vector<DoReFaScale<A>> scales(count);
  for (int64_t g = 0; g < count; ++g) scales[g] = DoReFaScale<A>::of(largest[g]);
  return scales;
}

// Writes the output, and counts the maxima.
template <class T, class Scales>
struct DoReFaTerm {
  DoReFaWeight f;
  Scales scales;
  const T* w;
  T* out;
  STE_OPS_INLINE double operator()(int64_t i, int64_t lane) const {
    const auto scale = scales.at(lane);
    const arithmetic_t<T> x = load(w[i]), e = tanh_exponential(x);
    out[i] = store<T>(f(x, e, scale.divisor));
    return e == scale.exponential ? 1 : 0;
  }
};

// Writes the gradient with the maximum held, and sums what the maximum's is made of.
template <class T, class Scales>
struct DoReFaBackwardTerm {
  Scales scales;
  const T *grad, *w;
  T* out;
  STE_OPS_INLINE double operator()(int64_t i, int64_t lane) const {
    const arithmetic_t<T> t = portable_tanh(load(w[i])), g = load(grad[i]);
    out[i] = store<T>(dorefa_gradient(g, t, scales.at(lane).reciprocal));
    return double(g) * double(t);
  }
};

// statistic: max|w| of each group, then how many weights have its tanh.
template <class T>
void dorefa_weight_loop(Type<T>, const DoReFaWeight& f, const ScaledWeights& call) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const int64_t count = groups.count();
  const T* w = const_data<T>(call.w);
  T* out = mutable_data<T>(call.out);
  A* statistic = mutable_data<A>(call.statistic);
  const std::vector<double> largest = reduce_magnitudes<Maximum>(groups, w);
  for (int64_t g = 0; g < count; ++g) statistic[g] = A(largest[g]);
  const std::vector<double> ties = reduce_with<T>(groups, dorefa_scales(statistic, count), [&](auto scales) {
    return DoReFaTerm<T, decltype(scales)>{f, scales, w, out};
  });
  for (int64_t g = 0; g < count; ++g) statistic[count + g] = A(ties[g]);
}

std::tuple<Tensor, Tensor> dorefa_weight_cpu(Tensor w, int64_t bits, bool per_channel) {
  constexpr const char* op = "dorefa_weight";
  const DoReFaWeight f{dorefa_levels(bits)};
  const ScaledWeights call = prepare_weights(op, w, per_channel, 2);
  dispatch_elements(op, "w", w, [&](auto type) { dorefa_weight_loop(type, f, call); });
  return {call.out, call.statistic};
}

template <class T>
STE_OPS_CLONES bool any_candidate(const T* w, int64_t count, arithmetic_t<T> candidate) {
  int found = 0;
  for (int64_t i = 0; i < count; ++i) found |= magnitude(load(w[i])) >= candidate;
  return found != 0;
}

// Writes the gradients of the maxima. These are few: a pass over the weights alone finds them.
template <class T>
struct FinishMaxima {
  using A = arithmetic_t<T>;
  const Groups& groups;
  const std::vector<DoReFaScale<A>>& scales;
  const std::vector<A>& taken;
  A candidate;
  const T *grad, *w;
  T* out;

  void operator()(int64_t begin, int64_t end) const {
    constexpr int64_t kStretch = 512;
    for (int64_t stop; begin < end; begin = stop) {
      stop = end - begin < kStretch ? end : begin + kStretch;
      if (!any_candidate(w + begin, stop - begin, candidate)) continue;
      for (int64_t i = begin; i < stop; ++i) {
        if (magnitude(load(w[i])) >= candidate) finish(i);
      }
    }
  }

  void finish(int64_t i) const {
    const A x = load(w[i]);
    const int64_t group = groups.of(i);
    if (tanh_exponential(x) != scales[group].exponential) return;
    out[i] =
        store<T>(dorefa_gradient_at_maximum(load(grad[i]), portable_tanh(x), scales[group].reciprocal, taken[group]));
  }
};

template <class T>
void dorefa_weight_backward_loop(Type<T>, const ScaledWeightsBackward& call) {
  using A = arithmetic_t<T>;
  const Groups& groups = call.groups;
  const int64_t count = groups.count();
  const T *grad = const_data<T>(call.grad), *w = const_data<T>(call.w);
  T* out = mutable_data<T>(call.out);
  const A* statistic = const_data<A>(call.statistic);
  const std::vector<DoReFaScale<A>> scales = dorefa_scales(statistic, count);
  const std::vector<double> totals = reduce_with<T>(
      groups, scales, [&](auto scales) { return DoReFaBackwardTerm<T, decltype(scales)>{scales, grad, w, out}; });
  std::vector<A> taken(count);
  A candidate = INFINITY;
  for (int64_t g = 0; g < count; ++g) {
    taken[g] = dorefa_taken(scales[g], totals[g], double(statistic[count + g]));
    if (dorefa_candidate(statistic[g]) < candidate) candidate = dorefa_candidate(statistic[g]);
  }
  const FinishMaxima<T> finish{groups, scales, taken, candidate, grad, w, out};
  torch::stable::parallel_for(0, groups.numel(), kGrain, finish);
}

Tensor dorefa_weight_backward_cpu(Tensor grad, Tensor w, Tensor statistic, bool per_channel) {
  constexpr const char* op = "dorefa_weight_backward";
  const ScaledWeightsBackward call = prepare_weights_backward(op, grad, w, statistic, per_channel, 2);
  dispatch_elements(op, "w", w, [&](auto type) { dorefa_weight_backward_loop(type, call); });
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("dorefa_weight", TORCH_BOX(&dorefa_weight_cpu));
  m.impl("dorefa_weight_backward", TORCH_BOX(&dorefa_weight_backward_cpu));
}

}  // namespace ste_ops
