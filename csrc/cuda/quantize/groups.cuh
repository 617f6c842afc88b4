// Element-wise kernels in which the elements of a group (core/groups.h) share a parameter.
#pragma once

#include "core/groups.h"
#include "cuda/vector.cuh"
#include "ops/layout.h"

namespace ste_ops {

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

}  // namespace ste_ops
