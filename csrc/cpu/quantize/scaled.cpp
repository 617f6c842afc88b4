#include "ops/quantize/scaled.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "cpu/quantize/groups.h"
#include "cpu/reduce.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

template <class T>
struct MagnitudeTerm {
  const T* x;
  STE_OPS_INLINE auto operator()(int64_t i, int64_t) const { return magnitude(load(x[i])); }
};

template <class Reduction, class T>
std::vector<double> reduce_magnitudes(const Groups& groups, const T* x) {
  return reduce_each<Reduction, arithmetic_t<T>>(groups, MagnitudeTerm<T>{x});
}

// mean(|w|) of each group.
template <class T>
void mean_magnitudes(const Groups& groups, const T* w, arithmetic_t<T>* means) {
  const std::vector<double> totals = reduce_magnitudes<Additive>(groups, w);
  for (int64_t g = 0; g < groups.count(); ++g) means[g] = mean_of<arithmetic_t<T>>(totals[g], groups.members());
}

std::tuple<Tensor, Tensor> xnor_weight_cpu(Tensor w, bool per_channel) {
  return scale_weights(
      "xnor_weight", w, per_channel, 1, [](const Groups& groups, const auto* w, auto* out, auto* means) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        if (are_short_runs(groups)) {
          reduce_and_visit_runs<Additive, A>(
              groups, MagnitudeTerm<T>{w}, MapOne<ScaledSign, T, A>{{}, w, out},
              [&](int64_t g, double total) { return means[g] = mean_of<A>(total, groups.members()); });
        } else {
          mean_magnitudes(groups, w, means);
          map_in_groups(ScaledSign{}, groups, means, w, out);
        }
      });
}

template <class T>
struct XnorTerm {
  const T *grad, *w;
  STE_OPS_INLINE double operator()(int64_t i, int64_t) const { return xnor_term(load(grad[i]), load(w[i])); }
};

Tensor xnor_weight_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  return scale_weights_backward(
      "xnor_weight_backward", grad, w, mean, per_channel, 1,
      [](const Groups& groups, const auto* grad, const auto* w, const auto* mean, auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        const XnorTerm<T> term{grad, w};
        const auto group_of = [&](int64_t g, double total) {
          return XnorGroup<A>{mean[g], mean_of<A>(total, groups.members())};
        };
        if (are_short_runs(groups)) {
          const MapTwo<XnorBackward, T, XnorGroup<A>> map{{}, grad, w, out};
          reduce_and_visit_runs<Additive, A>(groups, term, map, group_of);
          return;
        }
        const std::vector<double> totals = reduce_each<Additive, A>(groups, term);
        std::vector<XnorGroup<A>> parameters(groups.count());
        for (int64_t g = 0; g < groups.count(); ++g) parameters[g] = group_of(g, totals[g]);
        map_in_groups(XnorBackward{}, groups, parameters.data(), grad, w, out);
      });
}

Tensor magnitude_aware_sign_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  return scale_weights_backward(
      "magnitude_aware_sign_backward", grad, w, mean, per_channel, 1,
      [](const Groups& groups, const auto* grad, const auto* w, const auto* mean, auto* out) {
        map_in_groups(MagnitudeAwareSignBackward{}, groups, mean, grad, w, out);
      });
}

Tensor bitnet_weight_cpu(Tensor w, bool per_channel) {
  return std::get<0>(scale_weights(
      "bitnet_weight", w, per_channel, 1, [](const Groups& groups, const auto* w, auto* out, auto* scale) {
        using A = std::remove_pointer_t<decltype(scale)>;
        mean_magnitudes(groups, w, scale);
        for (int64_t g = 0; g < groups.count(); ++g) {
          scale[g] = at_least(scale[g], A(kLeastBitNetScale));
        }
        map_in_groups(BitNetWeight{}, groups, scale, w, out);
      }));
}

Tensor bitnet_activation_cpu(Tensor x, int64_t bits) {
  const double levels = bitnet_levels(bits);
  return bitnet_activation(x, bits, [&](const Groups& groups, const auto* x, auto* out) {
    using T = std::remove_pointer_t<decltype(out)>;
    using A = arithmetic_t<T>;
    if (are_short_runs(groups)) {
      reduce_and_visit_runs<Maximum, A>(
          groups, MagnitudeTerm<T>{x}, MapOne<BitNetActivation, T, A>{{levels}, x, out},
          [&](int64_t, double largest) { return bitnet_step<A>(largest, levels); });
      return;
    }
    const std::vector<double> largest = reduce_magnitudes<Maximum>(groups, x);
    std::vector<A> steps(groups.count());
    for (int64_t g = 0; g < groups.count(); ++g) steps[g] = bitnet_step<A>(largest[g], levels);
    map_in_groups(BitNetActivation{levels}, groups, steps.data(), x, out);
  });
}

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
  if (groups.size == 1 || groups.inner > kReduceSpan) {
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
std::tuple<Tensor, Tensor> dorefa_weight_cpu(Tensor w, int64_t bits, bool per_channel) {
  const DoReFaWeight f{dorefa_levels(bits)};
  return scale_weights(
      "dorefa_weight", w, per_channel, 2, [&](const Groups& groups, const auto* w, auto* out, auto* statistic) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        const int64_t count = groups.count();
        const std::vector<double> largest = reduce_magnitudes<Maximum>(groups, w);
        for (int64_t g = 0; g < count; ++g) statistic[g] = A(largest[g]);
        const std::vector<double> ties = reduce_with<T>(groups, dorefa_scales(statistic, count), [&](auto scales) {
          return DoReFaTerm<T, decltype(scales)>{f, scales, w, out};
        });
        for (int64_t g = 0; g < count; ++g) statistic[count + g] = A(ties[g]);
      });
}

template <class T>
STE_OPS_CLONES bool any_candidate(const T* w, int64_t count, arithmetic_t<T> candidate) {
  int found = 0;
  for (int64_t i = 0; i < count; ++i) found |= magnitude(load(w[i])) >= candidate;
  return found != 0;
}

// The maxima are few: a pass over the weights alone finds them.
template <class T, class A>
void finish_maxima(
    const Groups& groups, const std::vector<DoReFaScale<A>>& scales, const std::vector<A>& taken, A candidate,
    const T* grad, const T* w, T* out) {
  constexpr int64_t kStretch = 512;
  torch::stable::parallel_for(0, groups.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t stop; begin < end; begin = stop) {
      stop = end - begin < kStretch ? end : begin + kStretch;
      if (!any_candidate(w + begin, stop - begin, candidate)) continue;
      for (int64_t i = begin; i < stop; ++i) {
        const A x = load(w[i]);
        if (!(magnitude(x) >= candidate)) continue;
        const int64_t group = groups.of(i);
        if (tanh_exponential(x) != scales[group].exponential) continue;
        out[i] = store<T>(
            dorefa_gradient_at_maximum(load(grad[i]), portable_tanh(x), scales[group].reciprocal, taken[group]));
      }
    }
  });
}

Tensor dorefa_weight_backward_cpu(Tensor grad, Tensor w, Tensor statistic, bool per_channel) {
  return scale_weights_backward(
      "dorefa_weight_backward", grad, w, statistic, per_channel, 2,
      [](const Groups& groups, const auto* grad, const auto* w, const auto* statistic, auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        const int64_t count = groups.count();
        const std::vector<DoReFaScale<A>> scales = dorefa_scales(statistic, count);
        const std::vector<double> totals = reduce_with<T>(
            groups, scales, [&](auto scales) { return DoReFaBackwardTerm<T, decltype(scales)>{scales, grad, w, out}; });
        std::vector<A> taken(count);
        A candidate = INFINITY;
        for (int64_t g = 0; g < count; ++g) {
          taken[g] = dorefa_taken(scales[g], totals[g], double(statistic[count + g]));
          if (dorefa_candidate(statistic[g]) < candidate) candidate = dorefa_candidate(statistic[g]);
        }
        finish_maxima(groups, scales, taken, candidate, grad, w, out);
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("xnor_weight", TORCH_BOX(&xnor_weight_cpu));
  m.impl("xnor_weight_backward", TORCH_BOX(&xnor_weight_backward_cpu));
  m.impl("magnitude_aware_sign_backward", TORCH_BOX(&magnitude_aware_sign_backward_cpu));
  m.impl("bitnet_weight", TORCH_BOX(&bitnet_weight_cpu));
  m.impl("bitnet_activation", TORCH_BOX(&bitnet_activation_cpu));
  m.impl("dorefa_weight", TORCH_BOX(&dorefa_weight_cpu));
  m.impl("dorefa_weight_backward", TORCH_BOX(&dorefa_weight_backward_cpu));
}

}  // namespace ste_ops
