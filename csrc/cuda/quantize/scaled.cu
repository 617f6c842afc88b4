#include "ops/quantize/scaled.h"

#include <type_traits>

#include "cuda/reduce.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// What the lanes of a reduction add: the magnitudes.
// Moves: reads n * T, writes 0.
template <class T>
struct MagnitudeTerms {
  const T* x;
  __device__ MagnitudeTerms for_lanes(const int64_t*) const { return *this; }
  template <class State>
  __device__ void operator()(int64_t begin, int64_t end, State* terms) const {
    Vector<T> v = read_vector(x, begin, end, aligned16(x + begin));
#pragma unroll
    for (int k = 0; k < Vector<T>::size; ++k) terms[k] = State(magnitude(load(v.value[k])));
  }
};

// Moves: reads 0, writes groups * A.
template <class A>
struct KeepMean {
  A* means;
  int64_t members;
  double least;
  __device__ void operator()(int64_t group, double total) const {
    means[group] = at_least(mean_of<A>(total, members), A(least));
  }
};

// Moves: reads 0, writes groups * A.
template <class A>
struct KeepLargest {
  A* largest;
  __device__ void operator()(int64_t group, double total) const { largest[group] = A(total); }
};

// Moves: reads 0, writes groups * A.
template <class A>
struct KeepStep {
  A* steps;
  double levels;
  __device__ void operator()(int64_t group, double total) const { steps[group] = bitnet_step<A>(total, levels); }
};

// The parameter of each element of a vector at `begin`; `together` says that a vector lies in one group.
template <class P>
struct Parameters {
  const P* parameters;
  Groups groups;
  bool together;

  template <class T, class F>
  __device__ void for_each(int64_t begin, F f) const {
    if (begin >= groups.numel()) return;
    GroupWalk walk(groups, begin);
    P parameter = parameters[walk.group];
#pragma unroll
    for (int i = 0; i < Vector<T>::size; ++i) {
      f(i, parameter);
      if (together) continue;
      const int64_t group = walk.group;
      walk.next(groups);
      if (walk.group != group) parameter = parameters[walk.group];
    }
  }
};

template <class T, class P>
Parameters<P> parameters_of(const Groups& groups, const P* parameters) {
  return {parameters, groups, groups.count() == 1 || groups.inner % Vector<T>::size == 0};
}

// out = f(x, parameter of the group).
// Moves: reads n * T + groups * P, writes n * T.
template <class F, class T, class P>
__global__ void __launch_bounds__(kElementwiseThreads)
    map_scaled_kernel(F f, Parameters<P> parameters, const T* x, T* out, int64_t numel, bool aligned) {
  Vector<T> v[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) v[k] = read_vector(x, vector_begin<T>(k), numel, aligned);
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    parameters.template for_each<T>(
        vector_begin<T>(k), [&](int i, P parameter) { v[k].value[i] = store<T>(f(load(v[k].value[i]), parameter)); });
    write_vector(out, vector_begin<T>(k), numel, aligned, v[k]);
  }
}

// out = f(grad, x, parameter of the group).
// Moves: reads 2 * n * T + groups * P, writes n * T.
template <class F, class T, class P>
__global__ void __launch_bounds__(kElementwiseThreads) map_scaled_backward_kernel(
    F f, Parameters<P> parameters, const T* grad, const T* x, T* out, int64_t numel, bool aligned) {
  Vector<T> g[kChunksPerWarp], v[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    g[k] = read_vector(grad, vector_begin<T>(k), numel, aligned);
    v[k] = read_vector(x, vector_begin<T>(k), numel, aligned);
  }
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    parameters.template for_each<T>(vector_begin<T>(k), [&](int i, P parameter) {
      v[k].value[i] = store<T>(f(load(g[k].value[i]), load(v[k].value[i]), parameter));
    });
    write_vector(out, vector_begin<T>(k), numel, aligned, v[k]);
  }
}

template <class F, class T, class P>
void map_in_groups(const Launcher& launch, F f, const Groups& groups, const P* parameters, const T* x, T* out) {
  launch(
      map_scaled_kernel<F, T, P>, elementwise_blocks<T>(groups.numel()), kElementwiseThreads, f,
      parameters_of<T>(groups, parameters), x, out, groups.numel(), aligned16(x) && aligned16(out));
}

template <class F, class T, class P>
void map_in_groups(
    const Launcher& launch, F f, const Groups& groups, const P* parameters, const T* grad, const T* x, T* out) {
  launch(
      map_scaled_backward_kernel<F, T, P>, elementwise_blocks<T>(groups.numel()), kElementwiseThreads, f,
      parameters_of<T>(groups, parameters), grad, x, out, groups.numel(),
      aligned16(grad) && aligned16(x) && aligned16(out));
}

// Memory for `count` structs of numbers, on the device of `like` until the tensor dies.
template <class P>
Tensor new_parameters(int64_t count, const Tensor& like) {
  return empty_vector(count * int64_t(sizeof(P)), ScalarType::Byte, like);
}

std::tuple<Tensor, Tensor> xnor_weight_cuda(Tensor w, bool per_channel) {
  Launcher launch(w);
  return scale_weights(
      "xnor_weight", w, per_channel, 1, [&](const Groups& groups, const auto* x, auto* out, auto* mean) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        reduce_groups<Additive, T>(launch, groups, w, MagnitudeTerms<T>{x}, KeepMean<A>{mean, groups.members(), 0});
        map_in_groups(launch, ScaledSign{}, groups, static_cast<const A*>(mean), x, out);
      });
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

Tensor xnor_weight_backward_cuda(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  Launcher launch(w);
  return scale_weights_backward(
      "xnor_weight_backward", grad, w, mean, per_channel, 1,
      [&](const Groups& groups, const auto* grad, const auto* x, const auto* mean, auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        using P = XnorGroup<arithmetic_t<T>>;
        Tensor memory = new_parameters<P>(groups.count(), w);
        P* parameters = static_cast<P*>(memory.mutable_data_ptr());
        reduce_groups<Additive, T>(
            launch, groups, w, XnorTerms<T>{grad, x},
            KeepXnorGroup<arithmetic_t<T>>{mean, parameters, groups.members()});
        map_in_groups(launch, XnorBackward{}, groups, static_cast<const P*>(parameters), grad, x, out);
      });
}

Tensor magnitude_aware_sign_backward_cuda(Tensor grad, Tensor w, Tensor mean, bool per_channel) {
  Launcher launch(w);
  return scale_weights_backward(
      "magnitude_aware_sign_backward", grad, w, mean, per_channel, 1,
      [&](const Groups& groups, const auto* grad, const auto* x, const auto* mean, auto* out) {
        map_in_groups(launch, MagnitudeAwareSignBackward{}, groups, mean, grad, x, out);
      });
}

Tensor bitnet_weight_cuda(Tensor w, bool per_channel) {
  Launcher launch(w);
  return std::get<0>(scale_weights(
      "bitnet_weight", w, per_channel, 1, [&](const Groups& groups, const auto* x, auto* out, auto* scale) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        reduce_groups<Additive, T>(
            launch, groups, w, MagnitudeTerms<T>{x}, KeepMean<A>{scale, groups.members(), kLeastBitNetScale});
        map_in_groups(launch, BitNetWeight{}, groups, static_cast<const A*>(scale), x, out);
      }));
}

Tensor bitnet_activation_cuda(Tensor x, int64_t bits) {
  Launcher launch(x);
  const double levels = bitnet_levels(bits);
  return bitnet_activation(x, bits, [&](const Groups& groups, const auto* from, auto* out) {
    using T = std::remove_pointer_t<decltype(out)>;
    using A = arithmetic_t<T>;
    Tensor memory = new_statistic(x, 1, groups.count());
    A* steps = static_cast<A*>(memory.mutable_data_ptr());
    reduce_groups<Maximum, T>(launch, groups, x, MagnitudeTerms<T>{from}, KeepStep<A>{steps, levels});
    map_in_groups(launch, BitNetActivation{levels}, groups, static_cast<const A*>(steps), from, out);
  });
}

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

std::tuple<Tensor, Tensor> dorefa_weight_cuda(Tensor w, int64_t bits, bool per_channel) {
  Launcher launch(w);
  const DoReFaWeight f{dorefa_levels(bits)};
  return scale_weights(
      "dorefa_weight", w, per_channel, 2, [&](const Groups& groups, const auto* x, auto* out, auto* statistic) {
        using T = std::remove_pointer_t<decltype(out)>;
        using A = arithmetic_t<T>;
        reduce_groups<Maximum, T>(launch, groups, w, MagnitudeTerms<T>{x}, KeepLargest<A>{statistic});
        reduce_groups<Additive, T>(
            launch, groups, w, DoReFaTerms<T>{f, statistic, x, out}, KeepLargest<A>{statistic + groups.count()});
      });
}

Tensor dorefa_weight_backward_cuda(Tensor grad, Tensor w, Tensor statistic, bool per_channel) {
  Launcher launch(w);
  return scale_weights_backward(
      "dorefa_weight_backward", grad, w, statistic, per_channel, 2,
      [&](const Groups& groups, const auto* grad, const auto* x, const auto* largest, auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        using P = DoReFaGroup<arithmetic_t<T>>;
        Tensor memory = new_parameters<P>(groups.count(), w);
        P* parameters = static_cast<P*>(memory.mutable_data_ptr());
        reduce_groups<Additive, T>(
            launch, groups, w, DoReFaBackwardTerms<T>{grad, x},
            KeepDoReFaGroup<arithmetic_t<T>>{largest, largest + groups.count(), parameters});
        map_in_groups(launch, DoReFaBackward{}, groups, static_cast<const P*>(parameters), grad, x, out);
      });
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("xnor_weight", TORCH_BOX(&xnor_weight_cuda));
  m.impl("xnor_weight_backward", TORCH_BOX(&xnor_weight_backward_cuda));
  m.impl("magnitude_aware_sign_backward", TORCH_BOX(&magnitude_aware_sign_backward_cuda));
  m.impl("bitnet_weight", TORCH_BOX(&bitnet_weight_cuda));
  m.impl("bitnet_activation", TORCH_BOX(&bitnet_activation_cuda));
  m.impl("dorefa_weight", TORCH_BOX(&dorefa_weight_cuda));
  m.impl("dorefa_weight_backward", TORCH_BOX(&dorefa_weight_backward_cuda));
}

}  // namespace ste_ops
