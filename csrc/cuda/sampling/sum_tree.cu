// The kernels of a tree of sums: to build it, to update it and to draw from it.
#include "ops/sampling/sum_tree.h"

#include <tuple>

#include "cuda/sampling/fault.cuh"
#include "cuda/sampling/tiles.cuh"
#include "cuda/vector.cuh"
#include "ops/library.h"

namespace ste_ops {
namespace {

// The kFanout numbers from `begin` on, of which there are `count`, in accesses of 16 bytes; 0 past the end.
template <class B>
__device__ void read_children(const B* numbers, int64_t begin, int64_t count, B (&child)[kFanout]) {
  const bool aligned = aligned16(numbers);
#pragma unroll
  for (int j = 0; j < kFanout; j += Vector<B>::size) {
    const Vector<B> v = read_vector(numbers, begin + j, count, aligned);
#pragma unroll
    for (int i = 0; i < Vector<B>::size; ++i) child[j + i] = v.value[i];
  }
}

template <class T>
__device__ void sum_node(const TreeShape& shape, const bits_t<T>* weights, uint64_t* nodes, int level, int64_t node) {
  const int64_t begin = node * kFanout;
  uint64_t child[kFanout], prefix[kFanout];
  if (level > 1) {
    read_children(static_cast<const uint64_t*>(nodes) + shape.value[level - 1], begin, begin + kFanout, child);
  } else {
    bits_t<T> weight[kFanout];
    read_children(weights, begin, shape.count[0], weight);
#pragma unroll
    for (int j = 0; j < kFanout; ++j) child[j] = wide<T>(weight[j]);
  }
  nodes[shape.value[level] + node] = sum_children(child, prefix);
  uint64_t* out = nodes + shape.prefix[level] + begin;
#pragma unroll
  for (int j = 0; j < kFanout; j += 2) write_vector(out, j, kFanout, aligned16(out), {{prefix[j], prefix[j + 1]}});
}

// Sums every node of a level, unless something is wrong.
// Moves (level 1): reads n * T + 8, writes 136 * nodes.
// Moves (above): reads 128 * nodes + 8, writes 136 * nodes.
template <class T>
__global__ void sum_level_kernel(
    TreeShape shape, const bits_t<T>* weights, uint64_t* nodes, int level, const int64_t* verdict) {
  if (*verdict != 1) return;
  for (int64_t node = grid_index(); node < shape.count[level]; node += grid_stride()) {
    sum_node<T>(shape, weights, nodes, level, node);
  }
}

// Gives each node of a level that lies above an index to one entry: to the one that marks it first.
// Moves: reads at most 16 * n + 8, writes at most 9 * n.
__global__ void claim_kernel(
    TreeShape shape, uint64_t* nodes, int level, const int64_t* index, int64_t count, const int64_t* verdict,
    bool* claimed) {
  if (*verdict != 1) return;
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    uint64_t& value = nodes[shape.value[level] + (index[i] >> 4 * level)];
    claimed[i] = atomicExch(atomic(value), kChanged) != kChanged;
  }
}

// Sums the nodes that were claimed; the sums replace the marks. Earlier launches have summed the children.
// Moves: no fixed number: 9 * n read; its 16 children read and 136 written for each node that changes.
template <class T>
__global__ void sum_changed_kernel(
    TreeShape shape, const bits_t<T>* weights, uint64_t* nodes, int level, const int64_t* index, int64_t count,
    const int64_t* verdict, const bool* claimed) {
  if (*verdict != 1) return;
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    if (claimed[i]) sum_node<T>(shape, weights, nodes, level, index[i] >> 4 * level);
  }
}

// `wrong`, which comes in as zero, gets count - i of the first entry that is no weight, or whose index (where there are
// any) is none below n.
// Moves: reads n * T, writes 0.
// Moves (with indices): reads n * T + 8 * n, writes 0.
template <class T>
__global__ void inspect_entries_kernel(
    const bits_t<T>* weights, const int64_t* index, int64_t count, int64_t n, uint64_t* wrong) {
  uint64_t first = 0;
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    bool well = is_weight<T>(weights[i]) && (index == nullptr || uint64_t(index[i]) < uint64_t(n));
    if (!well) first = Greater()(first, uint64_t(count - i));
  }
  first = block_reduce(first, Greater(), uint64_t(0));
  if (threadIdx.x == 0 && first != 0) atomicMax(atomic(*wrong), static_cast<unsigned long long>(first));
}

// Moves: reads 8, writes 8.
__global__ void verdict_kernel(const uint64_t* wrong, int64_t count, int64_t* verdict) {
  if (grid_index() == 0) *verdict = *wrong != 0 ? int64_t(*wrong) - 1 - count : 1;
}

template <class T>
void judge(
    const Launcher& launch, const Tensor& like, const bits_t<T>* weights, const int64_t* index, int64_t count,
    int64_t n, int64_t* verdict) {
  Tensor wrong = torch::stable::new_zeros(like, {1}, ScalarType::Long);
  launch(
      inspect_entries_kernel<T>, grid_for(count), kSamplingThreads, weights, index, count, n,
      mutable_unsigned_data(wrong));
  launch(verdict_kernel, 1, kWarpSize, unsigned_data(wrong), count, verdict);
}

template <class T>
void build_tree(const Launcher& launch, const TreeBuild& call) {
  const TreeShape& shape = call.shape;
  const bits_t<T>* weights = call.weights.bits<T>();
  int64_t* verdict = mutable_typed_data<int64_t>(call.verdict);
  judge<T>(launch, call.weights.dense, weights, nullptr, shape.count[0], shape.count[0], verdict);
  for (int level = 1; level <= shape.levels; ++level) {
    launch(
        sum_level_kernel<T>, grid_for(shape.count[level]), kSamplingThreads, shape, weights,
        mutable_unsigned_data(call.nodes), level, verdict);
  }
}

std::tuple<Tensor, Tensor, Tensor> sum_tree_cuda(Tensor weights) {
  Launcher launch(weights);
  TreeBuild call = prepare_tree_build(weights);
  torch::stable::copy_(call.held, call.weights.dense);
  torch::stable::zero_(call.nodes);  // the kernels write no padding, and nothing where a weight is invalid
  dispatch_weights(call.op, call.weights, [&](auto type) { build_tree<typename decltype(type)::type>(launch, call); });
  return {call.held, call.nodes, call.verdict};
}

// The last entry wins among equal indices. Until its node is summed anew, the prefix sum of a weight that changes holds
// the greatest number of an entry so far.
// Moves: reads at most 16 * n + 8, writes at most 8 * n.
__global__ void forget_kernel(
    TreeShape shape, uint64_t* nodes, const int64_t* index, int64_t count, const int64_t* verdict) {
  if (*verdict != 1) return;
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    atomicExch(atomic(nodes[shape.prefix[1] + index[i]]), 0ull);
  }
}

// Moves: reads at most 16 * n + 8, writes at most 8 * n.
__global__ void contend_kernel(
    TreeShape shape, uint64_t* nodes, const int64_t* index, int64_t count, const int64_t* verdict) {
  if (*verdict != 1) return;
  for (int64_t i = grid_index(); i < count; i += grid_stride()) {
    atomicMax(atomic(nodes[shape.prefix[1] + index[i]]), static_cast<unsigned long long>(i + 1));
  }
}

// Moves: reads at most 16 * n + n * B + 8, writes at most n * B.
template <class B>
__global__ void write_kernel(TreeShape shape, TreeUpdate<B> update, const int64_t* verdict) {
  if (*verdict != 1) return;
  for (int64_t i = grid_index(); i < update.count; i += grid_stride()) {
    int64_t leaf = update.index[i];
    if (update.nodes[shape.prefix[1] + leaf] == uint64_t(i + 1)) update.weights[leaf] = update.value[i];
  }
}

// Reports what the verdict says of an update.
// Moves: reads 8, writes 0.
template <class T>
__global__ void report_update_kernel(
    TreeUpdate<bits_t<T>> update, int64_t n, const int64_t* verdict, DeferredErrors errors) {
  if (grid_index() == 0 && *verdict != 1) errors.report(fault_of_update<T>(update, -1 - *verdict, n));
}

template <class T>
void update_tree(const Launcher& launch, const DeferredErrors& errors, const TreeUpdateCall& call) {
  const TreeShape& shape = call.shape;
  const TreeUpdate<bits_t<T>> update = call.update<T>();
  const int64_t count = update.count, blocks = grid_for(count);
  if (count == 0) return;
  Tensor judged = empty_verdict(call.weights), claims = empty_vector(count, ScalarType::Byte, call.weights);
  int64_t* verdict = mutable_typed_data<int64_t>(judged);
  bool* claimed = mutable_typed_data<bool>(claims);
  judge<T>(launch, call.weights, update.value, update.index, count, shape.count[0], verdict);
  launch(report_update_kernel<T>, 1, kWarpSize, update, shape.count[0], verdict, errors);
  launch(forget_kernel, blocks, kSamplingThreads, shape, update.nodes, update.index, count, verdict);
  launch(contend_kernel, blocks, kSamplingThreads, shape, update.nodes, update.index, count, verdict);
  launch(write_kernel<bits_t<T>>, blocks, kSamplingThreads, shape, update, verdict);
  for (int level = 1; level <= shape.levels; ++level) {
    if (count >= shape.count[level]) {
      launch(
          sum_level_kernel<T>, grid_for(shape.count[level]), kSamplingThreads, shape, update.weights, update.nodes,
          level, verdict);
      continue;
    }
    launch(claim_kernel, blocks, kSamplingThreads, shape, update.nodes, level, update.index, count, verdict, claimed);
    launch(
        sum_changed_kernel<T>, blocks, kSamplingThreads, shape, update.weights, update.nodes, level, update.index,
        count, verdict, claimed);
  }
}

void sum_tree_update_cuda(Tensor weights, Tensor nodes, Tensor indices, Tensor values) {
  Launcher launch(weights);
  DeferredErrors errors(weights, kTreeUpdate);
  const TreeUpdateCall call = prepare_tree_update(weights, nodes, indices, values);
  dispatch_floating(call.op, "weights", weights, [&](auto type) {
    update_tree<typename decltype(type)::type>(launch, errors, call);
  });
}

// Moves: no fixed number: 128 bytes at most of each level read and 8 written for a draw.
__global__ void sum_tree_sample_kernel(
    TreeShape shape, const uint64_t* nodes, const uint64_t* seed, uint64_t start, int64_t num_samples, int64_t* out,
    DeferredErrors errors) {
  const bool empty = nodes[shape.value[shape.levels]] == 0;
  if (empty && grid_index() == 0) errors.report(Fault::only_zeros(-1));
  for (int64_t i = grid_index(); i < num_samples; i += grid_stride()) {
    uint64_t node = 0;
    Random128 random{};
    for (int level = shape.levels; level > 0; --level) {
      if (!tree_high(shape, level)) random = philox_draw(*seed, tree_stream(shape, level), start + uint64_t(i));
      uint64_t bits = tree_high(shape, level) ? high_bits(random) : low_bits(random);
      uint64_t prefix[kFanout];
      read_children(nodes + shape.prefix[level], int64_t(node) * kFanout, int64_t(node + 1) * kFanout, prefix);
      node = node * kFanout + (empty ? 0 : choose_child(prefix, bits));
    }
    out[i] = empty ? -1 : int64_t(node);
  }
}

Tensor sum_tree_sample_cuda(Tensor nodes, int64_t n, Tensor seed, int64_t start, int64_t num_samples) {
  Launcher launch(nodes);
  DeferredErrors errors(nodes, kTreeSample);
  const TreeDraws call = prepare_tree_draws(nodes, n, seed, start, num_samples);
  launch(
      sum_tree_sample_kernel, grid_for(num_samples), kSamplingThreads, call.shape, unsigned_data(nodes),
      unsigned_data(seed), call.start, num_samples, mutable_typed_data<int64_t>(call.out), errors);
  return call.out;
}

}  // namespace

STE_OPS_CUDA_IMPL(m) {
  m.impl("sum_tree", TORCH_BOX(&sum_tree_cuda));
  m.impl("sum_tree_update_", TORCH_BOX(&sum_tree_update_cuda));
  m.impl("sum_tree_sample", TORCH_BOX(&sum_tree_sample_cuda));
}

}  // namespace ste_ops
