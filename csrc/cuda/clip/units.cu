#include "ops/clip/units.h"

#include "cuda/clip/norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kUnitThreads = 256;

// Weights and gradients whose units are dense; a block for each unit.
template <int N>
struct UnitTable : TableOf<N> {
  const void* weight[N];
  void* grad[N];
  int64_t length[N];
  int64_t weight_stride[N];
  int64_t grad_stride[N];
  Storage weight_storage[N];
  Storage grad_storage[N];

  static int64_t blocks_of(const WeightAndGradient& pair) { return pair.count; }
  void set(int i, const WeightAndGradient& pair) {
    weight[i] = pair.weight.data;
    grad[i] = pair.grad.data;
    length[i] = pair.grad.length;
    weight_stride[i] = pair.weight.stride;
    grad_stride[i] = pair.grad.stride;
    weight_storage[i] = pair.weight.storage;
    grad_storage[i] = pair.grad.storage;
  }
};

// A block reads the weights and the gradient of its unit, and writes what changes of the gradient.
// Moves: reads n * W + n * T (again changed * T), writes changed * T; W are the bytes of a weight.
template <int N>
__global__ void __launch_bounds__(kUnitThreads)
    agc_kernel(const __grid_constant__ UnitTable<N> table, double clip_factor, double eps) {
  const int p = find_item(table);
  const int64_t unit = blockIdx.x - table.first_block[p], length = table.length[p];
  double weight_norm = 0;
  with_storage(table.weight_storage[p], [&](auto type) {
    using T = typename decltype(type)::type;
    weight_norm = dense_norm(Squares{}, static_cast<const T*>(table.weight[p]) + unit * table.weight_stride[p], length);
  });
  with_storage(table.grad_storage[p], [&](auto type) {
    using T = typename decltype(type)::type;
    T* grad = static_cast<T*>(table.grad[p]) + unit * table.grad_stride[p];
    const double coefficient = agc_coefficient(weight_norm, dense_norm(Squares{}, grad, length), clip_factor, eps);
    if (coefficient == 1) return;
    const arithmetic_t<T> c = arithmetic_t<T>(coefficient);
    rewrite_dense(grad, length, [c](T x) { return store<T>(load(x) * c); });
  });
}

template <class T>
__device__ double norm_of_unit(const T* data, const Strided& layout, int64_t length) {
  return norm_from(Squares{}, strided_total(Squares{}, data, layout, 0, length), sizeof(T) == 8, [&](auto other) {
    return strided_total(other, data, layout, 0, length);
  });
}

// A pair that is not dense has a launch of its own.
// Moves: reads n * W + n * T (again changed * T), writes changed * T; W are the bytes of a weight.
__global__ void __launch_bounds__(kUnitThreads)
    strided_agc_kernel(const __grid_constant__ WeightAndGradient pair, double clip_factor, double eps) {
  const int64_t length = pair.grad.length;
  double weight_norm = 0;
  with_storage(pair.weight.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* weight = reinterpret_cast<const T*>(pair.weight.data) + blockIdx.x * pair.weight.stride;
    weight_norm = norm_of_unit(weight, pair.weight.layout, length);
  });
  with_storage(pair.grad.storage, [&](auto type) {
    using T = typename decltype(type)::type;
    T* grad = reinterpret_cast<T*>(pair.grad.data) + blockIdx.x * pair.grad.stride;
    const double coefficient = agc_coefficient(
        weight_norm, norm_of_unit(static_cast<const T*>(grad), pair.grad.layout, length), clip_factor, eps);
    if (coefficient == 1) return;
    const arithmetic_t<T> c = arithmetic_t<T>(coefficient);
    rewrite_strided(grad, pair.grad.layout, 0, length, [c](T x) { return store<T>(load(x) * c); });
  });
}

struct LaunchUnits {
  const Launcher& launch;
  double clip_factor, eps;

  template <int N>
  void operator()(const UnitTable<N>& table, TablePlace at) const {
    launch(agc_kernel<N>, at.blocks, kUnitThreads, table, clip_factor, eps);
  }
};

bool is_dense(const WeightAndGradient& pair) { return pair.dense(); }

void clip_grad_agc_cuda(StableIValue* stack, uint64_t, uint64_t) {
  ClipGradAgc call(stack, Placed::kAnywhere);
  const auto strided = std::stable_partition(call.pairs.begin(), call.pairs.end(), is_dense);
  const Launcher launch(call.grads.any());
  for (auto pair = strided; pair != call.pairs.end(); ++pair) {
    launch(strided_agc_kernel, pair->count, kUnitThreads, *pair, call.clip_factor, call.eps);
  }
  const size_t dense = size_t(strided - call.pairs.begin());
  for_each_table<UnitTable>(call.pairs.data(), dense, LaunchUnits{launch, call.clip_factor, call.eps});
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("clip_grad_agc_", &clip_grad_agc_cuda); }

}  // namespace ste_ops
