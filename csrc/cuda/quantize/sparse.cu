// N:M sparsity: the weights of a group are ranked against each other.
#include "ops/quantize/sparse.h"

#include <algorithm>

#include "cuda/vector.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// A kept weight stays and a pruned one becomes 0.
// Moves: reads 0, writes 0.
struct Prune {
  static constexpr bool reads_grad = false;
  template <class T>
  __device__ T operator()(bool keep, T w, T) const {
    return keep ? w : T{};
  }
};

// The gradient of a kept weight stays, that of a pruned one decays.
// Moves: reads n * T, writes 0.
struct Decay {
  static constexpr bool reads_grad = true;
  double decay;
  template <class T>
  __device__ T operator()(bool keep, T w, T grad) const {
    return keep ? grad : decayed(grad, w, arithmetic_t<T>(decay));
  }
};

// Groups of four consecutive weights, whole ones in a vector.
// Moves: reads n * T + Rule, writes n * T.
template <class T, class Rule>
__global__ void __launch_bounds__(kElementwiseThreads)
    sr_ste_fours_kernel(Rule rule, const T* w, const T* grad, T* out, int64_t numel, int n, bool aligned) {
  static_assert(Vector<T>::size % 4 == 0, "a group lies in one vector");
  Vector<T> v[kChunksPerWarp], g[kChunksPerWarp];
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
    v[k] = read_vector(w, vector_begin<T>(k), numel, aligned);
    if constexpr (Rule::reads_grad) g[k] = read_vector(grad, vector_begin<T>(k), numel, aligned);
  }
#pragma unroll
  for (int k = 0; k < kChunksPerWarp; ++k) {
#pragma unroll
    for (int first = 0; first < Vector<T>::size; first += 4) {
      magnitude_key_t<T> keys[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) keys[j] = magnitude_key(v[k].value[first + j]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int ahead = 0;
#pragma unroll
        for (int other = 0; other < 4; ++other) ahead += other != j && ranks_before(keys[other], other, keys[j], j);
        T& value = v[k].value[first + j];
        value = rule(ahead < n, value, Rule::reads_grad ? g[k].value[first + j] : value);
      }
    }
    write_vector(out, vector_begin<T>(k), numel, aligned, v[k]);
  }
}

// Any m and any distance between neighbours: a thread for each group, whose weights it reads from the cache again.
// Moves: reads n * T + Rule (again n * T), writes n * T.
template <class T, class Rule>
__global__ void __launch_bounds__(256)
    sr_ste_groups_kernel(Rule rule, const T* w, const T* grad, T* out, Neighbours groups) {
  const int64_t m = groups.m, inner = groups.inner;
  for (int64_t lane = grid_index(); lane < groups.groups * inner; lane += grid_stride()) {
    const int64_t begin = lane / inner * m * inner + lane % inner;
    for (int64_t j = 0; j < m; ++j) {
      const int64_t place = begin + j * inner;
      const T value = w[place];
      const auto key = magnitude_key(value);
      int64_t ahead = 0;
      for (int64_t other = 0; other < m && ahead < groups.n; ++other) {
        ahead += other != j && ranks_before(magnitude_key(w[begin + other * inner]), other, key, j);
      }
      out[place] = rule(ahead < groups.n, value, grad[place]);
    }
  }
}

template <class T, class Rule>
void launch_prune(const Launcher& launch, Type<T>, Rule rule, const Pruning& call) {
  const T *w = const_data<T>(call.w), *grad = const_data<T>(call.grad);
  T* out = mutable_data<T>(call.out);
  const Neighbours& groups = call.groups;
  if constexpr (Vector<T>::size % 4 == 0) {
    if (groups.m == 4 && groups.inner == 1) {
      const int64_t numel = groups.groups * 4;
      launch(
          sr_ste_fours_kernel<T, Rule>, elementwise_blocks<T>(numel), kElementwiseThreads, rule, w, grad, out, numel,
          int(groups.n), aligned16(w) && aligned16(grad) && aligned16(out));
      return;
    }
  }
  launch(
      sr_ste_groups_kernel<T, Rule>, std::min<int64_t>(blocks_for(groups.groups * groups.inner, 256), INT32_MAX), 256,
      rule, w, grad, out, groups);
}

Tensor sr_ste_cuda(Tensor w, int64_t n, int64_t m) {
  const Launcher launch(w);
  const Pruning call = prepare_sr_ste(w, n, m);
  dispatch_floating("sr_ste", "w", w, [&](auto type) { launch_prune(launch, type, Prune{}, call); });
  return call.out;
}

Tensor sr_ste_backward_cuda(Tensor grad, Tensor w, int64_t n, int64_t m, double decay) {
  const Launcher launch(w);
  const Pruning call = prepare_sr_ste_backward(grad, w, n, m);
  dispatch_floating("sr_ste_backward", "w", w, [&](auto type) { launch_prune(launch, type, Decay{decay}, call); });
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("sr_ste", TORCH_BOX(&sr_ste_cuda));
  m.impl("sr_ste_backward", TORCH_BOX(&sr_ste_backward_cuda));
}

}  // namespace ste_ops
