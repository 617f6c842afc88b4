// The loops over a tree of sums: to build it, to update it and to draw from it.
#include "ops/sampling/sum_tree.h"

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "cpu/sampling/draws.h"
#include "cpu/share.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// What a node takes, an entry to inspect, or to copy, and a draw.
constexpr double kNodeNanoseconds = 16, kInspectNanoseconds = 1, kDescentNanoseconds = 60;
// The memory of a listed node is asked for so many nodes ahead.
constexpr int64_t kAhead = 8;

template <class T>
STE_OPS_INLINE void sum_node(
    const TreeShape& shape, const bits_t<T>* weights, uint64_t* nodes, int level, int64_t node) {
  uint64_t* prefix = nodes + shape.prefix[level] + node * kFanout;
  uint64_t* value = nodes + shape.value[level] + node;
  if (level > 1) {
    *value = sum_children(nodes + shape.value[level - 1] + node * kFanout, prefix);
    return;
  }
  uint64_t child[kFanout] = {};
  const bits_t<T>* w = weights + node * kFanout;
  const int64_t count = shape.count[0] - node * kFanout;
  if (count >= kFanout) {
    widen<T>(w, child);
  } else {
    for (int64_t j = 0; j < count; ++j) child[j] = wide<T>(w[j]);
  }
  *value = sum_children(child, prefix);
}

// Nodes begin, begin + 1, ... of a level, or those listed.
template <class T>
STE_OPS_CLONES __attribute__((flatten)) void sum_nodes(
    const TreeShape& shape, const bits_t<T>* weights, uint64_t* nodes, int level, const int64_t* listed, int64_t begin,
    int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (listed && i + kAhead < end) {
      const int64_t next = listed[i + kAhead] * kFanout;
      if (level == 1) {
        __builtin_prefetch(weights + next);
      } else {
        __builtin_prefetch(nodes + shape.value[level - 1] + next);
        __builtin_prefetch(nodes + shape.value[level - 1] + next + kFanout / 2);
      }
      __builtin_prefetch(nodes + shape.prefix[level] + next, 1);
      __builtin_prefetch(nodes + shape.prefix[level] + next + kFanout / 2, 1);
    }
    sum_node<T>(shape, weights, nodes, level, listed ? listed[i] : i);
  }
}

template <class T>
struct SumNodes {
  const TreeShape& shape;
  const bits_t<T>* weights;
  uint64_t* nodes;
  int level;
  const int64_t* listed;

  void operator()(int64_t begin, int64_t end) const { sum_nodes<T>(shape, weights, nodes, level, listed, begin, end); }
};

template <class T>
void sum_level(
    const TreeShape& shape, const bits_t<T>* weights, uint64_t* nodes, int level, const int64_t* listed,
    int64_t count) {
  const SumNodes<T> sum{shape, weights, nodes, level, listed};
  share_out(count, kNodeNanoseconds, sum);
}

template <class T>
STE_OPS_CLONES bool all_weights(const bits_t<T>* weights, int64_t count) {
  bits_t<T> invalid = 0;
  for (int64_t i = 0; i < count; ++i) invalid |= bits_t<T>(!is_weight<T>(weights[i]));
  return invalid == 0;
}

STE_OPS_CLONES bool all_indices(const int64_t* index, int64_t count, int64_t n) {
  uint64_t invalid = 0;
  for (int64_t i = 0; i < count; ++i) invalid |= uint64_t(uint64_t(index[i]) >= uint64_t(n));
  return invalid == 0;
}

// Lowers `first` to the first entry that is no weight, or whose index (where there are any) is none below n.
template <class T>
struct InspectEntries {
  const bits_t<T>* weights;
  const int64_t* index;
  int64_t n;
  std::atomic<int64_t>& first;

  void operator()(int64_t begin, int64_t end) const {
    if (all_weights<T>(weights + begin, end - begin) && (!index || all_indices(index + begin, end - begin, n))) return;
    for (int64_t i = begin; i < end; ++i) {
      if (!is_weight<T>(weights[i]) || (index && uint64_t(index[i]) >= uint64_t(n))) return lower(first, i);
    }
  }
};

// The first entry that is wrong; `count` where all are well.
template <class T>
int64_t first_wrong(const bits_t<T>* weights, const int64_t* index, int64_t count, int64_t n) {
  std::atomic<int64_t> first(count);
  const InspectEntries<T> inspect{weights, index, n, first};
  share_out(count, kInspectNanoseconds, inspect);
  return first;
}

// torch would share out a copy, and zeros, from 32,768 elements on.
template <class T>
void copy_weights(const bits_t<T>* weights, int64_t n, bits_t<T>* held) {
  share_out(n, kInspectNanoseconds, [&](int64_t begin, int64_t end) {
    std::copy(weights + begin, weights + end, held + begin);
  });
}

// The sums of a level end with zeros, up to a whole node of the level above.
void pad_levels(const TreeShape& shape, uint64_t* nodes) {
  for (int level = 1; level <= shape.levels; ++level) {
    const int64_t end = level < shape.levels ? shape.value[level + 1] : shape.numel;
    std::fill(nodes + shape.value[level] + shape.count[level], nodes + end, 0);
  }
}

template <class T>
void build_tree(const TreeBuild& call) {
  const TreeShape& shape = call.shape;
  const bits_t<T>* weights = call.weights.bits<T>();
  uint64_t* nodes = mutable_unsigned_data(call.nodes);
  const int64_t n = shape.count[0], wrong = first_wrong<T>(weights, nullptr, n, n);
  *mutable_typed_data<int64_t>(call.verdict) = wrong < n ? -1 - wrong : 1;
  copy_weights<T>(weights, n, mutable_typed_data<bits_t<T>>(call.held));
  if (wrong < n) {
    std::fill(nodes, nodes + shape.numel, 0);
    return;
  }
  pad_levels(shape, nodes);
  for (int level = 1; level <= shape.levels; ++level) {
    sum_level<T>(shape, weights, nodes, level, nullptr, shape.count[level]);
  }
}

std::tuple<Tensor, Tensor, Tensor> sum_tree_cpu(Tensor weights) {
  const TreeBuild call = prepare_tree_build(weights);
  dispatch_weights(call.op, call.weights, [&](auto type) { build_tree<typename decltype(type)::type>(call); });
  return {call.held, call.nodes, call.verdict};
}

// The distinct parents of the listed children, each marked when it is met for the first time.
void mark_parents(uint64_t* values, std::vector<int64_t>& listed) {
  size_t count = 0;
  for (int64_t child : listed) {
    int64_t parent = child / kFanout;
    if (values[parent] == kChanged) continue;
    values[parent] = kChanged;
    listed[count++] = parent;
  }
  listed.resize(count);
}

template <class T>
void apply_update(const TreeShape& shape, const TreeUpdate<bits_t<T>>& update) {
  for (int64_t i = 0; i < update.count; ++i) update.weights[update.index[i]] = update.value[i];
  std::vector<int64_t> listed;
  for (int level = 1; level <= shape.levels; ++level) {
    // From here on a list would be about as long as the level.
    const int64_t changed = level == 1 ? update.count : listed.empty() ? shape.count[level] : int64_t(listed.size());
    if (changed >= shape.count[level]) {
      listed.clear();
      sum_level<T>(shape, update.weights, update.nodes, level, nullptr, shape.count[level]);
      continue;
    }
    if (level == 1) listed.assign(update.index, update.index + update.count);
    mark_parents(update.nodes + shape.value[level], listed);
    sum_level<T>(shape, update.weights, update.nodes, level, listed.data(), int64_t(listed.size()));
  }
}

template <class T>
void update_tree(const TreeUpdateCall& call) {
  const TreeUpdate<bits_t<T>> update = call.update<T>();
  const int64_t n = call.shape.count[0], wrong = first_wrong<T>(update.value, update.index, update.count, n);
  if (wrong < update.count) refuse(kTreeUpdate, fault_of_update<T>(update, wrong, n));
  if (update.count > 0) apply_update<T>(call.shape, update);
}

void sum_tree_update_cpu(Tensor weights, Tensor nodes, Tensor indices, Tensor values) {
  const TreeUpdateCall call = prepare_tree_update(weights, nodes, indices, values);
  dispatch_floating(call.op, "weights", weights, [&](auto type) { update_tree<typename decltype(type)::type>(call); });
}

// All draws of a batch go down a level together, so that their reads overlap.
STE_OPS_CLONES __attribute__((flatten)) void draw_batch(
    const TreeShape& shape, const uint64_t* nodes, uint64_t seed, uint64_t start, int64_t count, int64_t* out) {
  RandomBlock<kDraws> random;
  uint64_t node[kDraws] = {};
  for (int level = shape.levels; level > 0; --level) {
    if (!tree_high(shape, level)) philox_block(seed, tree_stream(shape, level), start, random);
    const uint64_t* bits = tree_high(shape, level) ? random.high : random.low;
    const uint64_t* prefix = nodes + shape.prefix[level];
    const uint64_t* next = nodes + shape.prefix[level - (level > 1)];
    for (int64_t i = 0; i < count; ++i) {
      node[i] = node[i] * kFanout + choose_child(prefix + node[i] * kFanout, bits[i]);
      __builtin_prefetch(next + node[i] * kFanout);
      __builtin_prefetch(next + node[i] * kFanout + kFanout / 2);
    }
  }
  std::copy(node, node + count, out);
}

// Batches begin .. end - 1 of the draws.
struct DrawBatches {
  const TreeShape& shape;
  const uint64_t* nodes;
  uint64_t seed, start;
  int64_t num_samples;
  int64_t* out;

  void operator()(int64_t begin, int64_t end) const {
    for (int64_t i = begin * kDraws; i < std::min(end * kDraws, num_samples); i += kDraws) {
      int64_t count = std::min(kDraws, num_samples - i);
      draw_batch(shape, nodes, seed, start + uint64_t(i), count, out + i);
    }
  }
};

Tensor sum_tree_sample_cpu(Tensor nodes, int64_t n, Tensor seed, int64_t start, int64_t num_samples) {
  const TreeDraws call = prepare_tree_draws(nodes, n, seed, start, num_samples);
  if (num_samples == 0) return call.out;
  const TreeShape& shape = call.shape;
  const uint64_t* sums = unsigned_data(nodes);
  int64_t* out = mutable_typed_data<int64_t>(call.out);
  const DrawBatches draw{shape, sums, *unsigned_data(seed), call.start, num_samples, out};
  if (sums[shape.value[shape.levels]] == 0) refuse(kTreeSample, Fault::only_zeros(-1));
  const int64_t batches = (num_samples + kDraws - 1) / kDraws;
  share_out(batches, kDescentNanoseconds * kDraws, draw);
  return call.out;
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("sum_tree", TORCH_BOX(&sum_tree_cpu));
  m.impl("sum_tree_update_", TORCH_BOX(&sum_tree_update_cpu));
  m.impl("sum_tree_sample", TORCH_BOX(&sum_tree_sample_cpu));
}

}  // namespace ste_ops
