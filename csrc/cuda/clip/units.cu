#include "ops/clip/units.h"

#include "cuda/clip/norm.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

constexpr int kUnitThreads = 256;

// Weights and gradients whose units are dense, as Table holds gradients.
template <int N>
struct UnitTable {
  const void* weight[N];
  void* grad[N];
  int64_t length[N];
  int64_t weight_stride[N];
  int64_t grad_stride[N];
  uint32_t first_block[N + 1];  // a block for each unit
  Storage weight_storage[N];
  Storage grad_storage[N];
  int count;
};
constexpr int kSmallUnits = 64;
constexpr int kLargeUnits = kLargeTable > 1000 ? 700 : 80;
static_assert(sizeof(UnitTable<kLargeUnits>) <= (kLargeTable > 1000 ? 32764 : 4096) - 64, "room for the parameters");

// A block reads the weights and the gradient of its unit, and writes what changes of the gradient.
// Moves: reads n * W + n * T (again changed * T), writes changed * T; W are the bytes of a weight.
template <int N>
__global__ void __launch_bounds__(kUnitThreads)
    agc_kernel(const __grid_constant__ UnitTable<N> table, double clip_factor, double eps) {
  const int p = find_tensor(table);
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

template <int N>
size_t launch_table(
    const Launcher& launch, const std::vector<WeightAndGradient>& pairs, size_t begin, double clip_factor, double eps) {
  UnitTable<N> table;
  table.count = 0;
  int64_t blocks = 0;
  size_t p = begin;
  for (; p < pairs.size() && table.count < N; ++p) {
    const WeightAndGradient& pair = pairs[p];
    if (table.count > 0 && blocks + pair.count > INT32_MAX) break;
    const int i = table.count++;
    table.weight[i] = pair.weight.data;
    table.grad[i] = pair.grad.data;
    table.length[i] = pair.grad.length;
    table.weight_stride[i] = pair.weight.stride;
    table.grad_stride[i] = pair.grad.stride;
    table.weight_storage[i] = pair.weight.storage;
    table.grad_storage[i] = pair.grad.storage;
    table.first_block[i] = uint32_t(blocks);
    blocks += pair.count;
  }
  table.first_block[table.count] = uint32_t(blocks);
  launch(agc_kernel<N>, blocks, kUnitThreads, table, clip_factor, eps);
  return p;
}

void clip_grad_agc_cuda(StableIValue* stack, uint64_t, uint64_t) {
  constexpr const char* op = "clip_grad_agc_";
  TensorList weights(op, stack[0], Access::kRead, Placed::kAnywhere);
  TensorList grads(op, stack[1], Access::kWrite, Placed::kAnywhere);
  const double clip_factor = to<double>(stack[2]), eps = to<double>(stack[3]);
  std::vector<WeightAndGradient> pairs = pairs_of(op, weights, grads);
  const auto strided = std::stable_partition(pairs.begin(), pairs.end(), [](const auto& pair) { return pair.dense(); });
  Launcher launch(grads.any());
  for (auto pair = strided; pair != pairs.end(); ++pair) {
    launch(strided_agc_kernel, pair->count, kUnitThreads, *pair, clip_factor, eps);
  }
  pairs.erase(strided, pairs.end());
  for (size_t p = 0; p < pairs.size();) {
    p = pairs.size() - p <= kSmallUnits ? launch_table<kSmallUnits>(launch, pairs, p, clip_factor, eps)
                                        : launch_table<kLargeUnits>(launch, pairs, p, clip_factor, eps);
  }
}

}  // namespace

STE_OPS_CUDA_IMPL(m) { m.impl("clip_grad_agc_", &clip_grad_agc_cuda); }

}  // namespace ste_ops
