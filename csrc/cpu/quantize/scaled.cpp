#include "../../scaled.h"

#include <cmath>
#include <type_traits>
#include <vector>

#include "../../library.h"
#include "../reduce.h"
#include "groups.h"

namespace ste_ops {
namespace {

template <class T>
struct MagnitudeTerm {
  const T* x;
  STE_OPS_INLINE auto operator()(int64_t i, int64_t) const { return magnitude(load(x[i])); }
};

template <class Reduction, class T>
std::vector<double> reduce_magnitudes(const Groups& groups, const T* x) {
  std::vector<double> totals(groups.count());
  reduce_groups<Reduction, arithmetic_t<T>>(groups, totals.data(),
                                            [&](const ReduceTask&) { return MagnitudeTerm<T>{x}; });
  return totals;
}

// mean(|w|) of each group.
template <class T>
void mean_magnitudes(const Groups& groups, const T* w, arithmetic_t<T>* means) {
  const std::vector<double> totals = reduce_magnitudes<Additive>(groups, w);
  for (int64_t g = 0; g < groups.count(); ++g) means[g] = mean_of<arithmetic_t<T>>(totals[g], groups.members());
}

std::tuple<Tensor, Tensor> xnor_weight_cpu(Tensor w, bool per_channel) {
  return scale_weights("xnor_weight", w, per_channel, 1,
                       [](const Groups& groups, const auto* w, auto* out, auto* mean) {
                         mean_magnitudes(groups, w, mean);
                         map_in_groups(ScaledSign{}, groups, mean, w, out);
                       });
}

template <class T>
struct XnorTerm {
  const T *grad, *w;
  STE_OPS_INLINE double operator()(int64_t i, int64_t) const { return xnor_term(load(grad[i]), load(w[i])); }
};

Tensor xnor_weight_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  return scale_weights_backward("xnor_weight_backward", grad, w, mean, per_channel, 1,
                                [](const Groups& groups, const auto* grad, const auto* w, const auto* mean, auto* out) {
                                  using T = std::remove_pointer_t<decltype(out)>;
                                  using A = arithmetic_t<T>;
                                  std::vector<double> totals(groups.count());
                                  reduce_groups<Additive, A>(groups, totals.data(),
                                                             [&](const ReduceTask&) { return XnorTerm<T>{grad, w}; });
                                  std::vector<XnorGroup<A>> parameters(groups.count());
                                  for (int64_t g = 0; g < groups.count(); ++g)
                                    parameters[g] = {mean[g], mean_of<A>(totals[g], groups.members())};
                                  map_in_groups(XnorBackward{}, groups, parameters.data(), grad, w, out);
                                });
}

Tensor magnitude_aware_sign_backward_cpu(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  return scale_weights_backward("magnitude_aware_sign_backward", grad, w, mean, per_channel, 1,
                                [](const Groups& groups, const auto* grad, const auto* w, const auto* mean, auto* out) {
                                  map_in_groups(MagnitudeAwareSignBackward{}, groups, mean, grad, w, out);
                                });
}

Tensor bitnet_weight_cpu(Tensor w, bool per_channel) {
  return std::get<0>(scale_weights("bitnet_weight", w, per_channel, 1,
                                   [](const Groups& groups, const auto* w, auto* out, auto* scale) {
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
    using A = arithmetic_t<std::remove_pointer_t<decltype(out)>>;
    const std::vector<double> largest = reduce_magnitudes<Maximum>(groups, x);
    std::vector<A> steps(groups.count());
    for (int64_t g = 0; g < groups.count(); ++g) steps[g] = bitnet_step<A>(largest[g], levels);
    map_in_groups(BitNetActivation{levels}, groups, steps.data(), x, out);
  });
}

// Writes the output, and counts the maxima.
template <class T, class Tops>
struct DoReFaTerm {
  DoReFaWeight f;
  Tops tops;
  const T* w;
  T* out;
  STE_OPS_INLINE double operator()(int64_t i, int64_t lane) const {
    const arithmetic_t<T> t = portable_tanh(load(w[i])), top = tops.at(lane);
    out[i] = store<T>(f(t, top));
    return magnitude(t) == top ? 1 : 0;
  }
};

// Writes the gradient with the maximum held, and sums what the maximum's is made of.
template <class T, class Tops>
struct DoReFaBackwardTerm {
  Tops tops;
  const T *grad, *w;
  T* out;
  STE_OPS_INLINE double operator()(int64_t i, int64_t lane) const {
    const arithmetic_t<T> t = portable_tanh(load(w[i])), g = load(grad[i]);
    out[i] = store<T>(DoReFaBackward()(g, t, tops.at(lane)));
    return double(g) * double(t);
  }
};

// The parameter of the lanes of a task: one, or one for each lane.
template <class A>
struct OneTop {
  A top;
  STE_OPS_INLINE A at(int64_t) const { return top; }
};
template <class A>
struct LaneTops {
  const A* tops;
  STE_OPS_INLINE A at(int64_t lane) const { return tops[lane]; }
};

// Sums make_term(tops of the task's lanes) over each group.
template <class A, class MakeTerm>
std::vector<double> reduce_with_tops(const Groups& groups, const A* tops, const MakeTerm& make_term) {
  std::vector<double> totals(groups.count());
  if (groups.size == 1 || groups.inner > kReduceSpan) {
    reduce_groups<Additive, A>(groups, totals.data(), [&](const ReduceTask& task) {
      return make_term(OneTop<A>{tops[task.batch * groups.size + task.first]});
    });
  } else {
    reduce_groups<Additive, A>(groups, totals.data(), [&](const ReduceTask& task) {
      static thread_local A of_lane[kReduceSpan];
      for (int64_t lane = 0; lane < task.width && lane < task.length; ++lane) {
        of_lane[lane] = tops[task.batch * groups.size + (task.first + lane / groups.inner) % groups.size];
      }
      return make_term(LaneTops<A>{of_lane});
    });
  }
  return totals;
}

// statistic: max|w| of each group, then how many weights have its tanh.
std::tuple<Tensor, Tensor> dorefa_weight_cpu(Tensor w, int64_t bits, bool per_channel) {
  const DoReFaWeight f{dorefa_levels(bits)};
  return scale_weights(
      "dorefa_weight", w, per_channel, 2, [&](const Groups& groups, const auto* w, auto* out, auto* statistic) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        const std::vector<double> largest = reduce_magnitudes<Maximum>(groups, w);
        std::vector<A> tops(groups.count());
        for (int64_t g = 0; g < groups.count(); ++g) tops[g] = portable_tanh(statistic[g] = A(largest[g]));
        const std::vector<double> ties = reduce_with_tops(
            groups, tops.data(), [&](auto tops) { return DoReFaTerm<T, decltype(tops)>{f, tops, w, out}; });
        for (int64_t g = 0; g < groups.count(); ++g) statistic[groups.count() + g] = A(ties[g]);
      });
}

template <class T>
STE_OPS_CLONES bool any_candidate(const T* w, int64_t count, arithmetic_t<T> candidate) {
  int found = 0;
  for (int64_t i = 0; i < count; ++i) found |= magnitude(load(w[i])) >= candidate;
  return found != 0;
}

// The maxima are few: a pass over the weights alone finds them.
template <class T>
void finish_maxima(const Groups& groups, const std::vector<DoReFaGroup<arithmetic_t<T>>>& parameters,
                   arithmetic_t<T> candidate, const T* grad, const T* w, T* out) {
  constexpr int64_t kStretch = 512;
  torch::stable::parallel_for(0, groups.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t stop; begin < end; begin = stop) {
      stop = end - begin < kStretch ? end : begin + kStretch;
      if (!any_candidate(w + begin, stop - begin, candidate)) continue;
      for (int64_t i = begin; i < stop; ++i) {
        if (!(magnitude(load(w[i])) >= candidate)) continue;
        const DoReFaGroup<arithmetic_t<T>> group = parameters[groups.of(i)];
        const arithmetic_t<T> t = portable_tanh(load(w[i]));
        if (magnitude(t) == group.top) out[i] = store<T>(dorefa_at_maximum(load(grad[i]), t, group));
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
        std::vector<A> tops(count);
        for (int64_t g = 0; g < count; ++g) tops[g] = portable_tanh(statistic[g]);
        const std::vector<double> totals = reduce_with_tops(
            groups, tops.data(), [&](auto tops) { return DoReFaBackwardTerm<T, decltype(tops)>{tops, grad, w, out}; });
        std::vector<DoReFaGroup<A>> parameters(count);
        A candidate = INFINITY;
        for (int64_t g = 0; g < count; ++g) {
          parameters[g] = dorefa_group(tops[g], totals[g], double(statistic[count + g]));
          if (dorefa_candidate(statistic[g]) < candidate) candidate = dorefa_candidate(statistic[g]);
        }
        finish_maxima<T>(groups, parameters, candidate, grad, w, out);
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
