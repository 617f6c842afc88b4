#include "ops/sampling/sum_tree.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/sampling/draws.h"
#include "ops/library.h"

namespace ste_ops {
namespace {

// Nodes that a thread takes at least.
constexpr int64_t kNodes = 1024;
// How far ahead of a listed node its memory is asked for.
constexpr int64_t kAhead = 8;
// Batches of draws that a thread takes at least.
constexpr int64_t kBatches = 8;

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
void sum_level(
    const TreeShape& shape, const bits_t<T>* weights, uint64_t* nodes, int level, const int64_t* listed,
    int64_t count) {
  if (count <= kNodes) return sum_nodes<T>(shape, weights, nodes, level, listed, 0, count);
  torch::stable::parallel_for(0, count, kNodes, [&](int64_t begin, int64_t end) {
    sum_nodes<T>(shape, weights, nodes, level, listed, begin, end);
  });
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

// The first entry that is no weight, or whose index (where there are any) is none below n; `count` where all are well.
template <class T>
int64_t first_wrong(const bits_t<T>* weights, const int64_t* index, int64_t count, int64_t n) {
  std::atomic<int64_t> first(count);
  auto inspect = [&](int64_t begin, int64_t end) {
    if (all_weights<T>(weights + begin, end - begin) && (!index || all_indices(index + begin, end - begin, n))) return;
    for (int64_t i = begin; i < end; ++i) {
      if (!is_weight<T>(weights[i]) || (index && uint64_t(index[i]) >= uint64_t(n))) return lower(first, i);
    }
  };
  if (count <= kGrain) {
    inspect(0, count);
  } else {
    torch::stable::parallel_for(0, count, kGrain, inspect);
  }
  return first;
}

std::tuple<Tensor, Tensor> sum_tree_cpu(Tensor weights) {
  return sum_tree(
      weights,
      [](auto type, const Tensor&, const auto* weights, const TreeShape& shape, uint64_t* nodes, int64_t* verdict) {
        using T = typename decltype(type)::type;
        const int64_t n = shape.count[0], wrong = first_wrong<T>(weights, nullptr, n, n);
        *verdict = wrong < n ? -1 - wrong : 1;
        if (wrong < n) return;
        for (int level = 1; level <= shape.levels; ++level) {
          sum_level<T>(shape, weights, nodes, level, nullptr, shape.count[level]);
        }
      });
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
    // Past this point a list would be about as long as the level.
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

void sum_tree_update_cpu(Tensor weights, Tensor nodes, Tensor indices, Tensor values) {
  sum_tree_update(
      weights, nodes, indices, values, [](auto type, const Tensor&, const TreeShape& shape, const auto& update) {
        using T = typename decltype(type)::type;
        const int64_t n = shape.count[0];
        const int64_t wrong = first_wrong<T>(update.value, update.index, update.count, n);
        if (wrong < update.count) refuse(kTreeUpdate, fault_of_update<T>(update, wrong, n));
        if (update.count > 0) apply_update<T>(shape, update);
      });
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

Tensor sum_tree_sample_cpu(Tensor nodes, int64_t n, Tensor seed, int64_t start, int64_t num_samples) {
  return sum_tree_sample(
      nodes, n, seed, start, num_samples,
      [](const TreeShape& shape, const uint64_t* nodes, const uint64_t* seed, uint64_t start, int64_t num_samples,
         int64_t* out) {
        if (nodes[shape.value[shape.levels]] == 0) refuse(kTreeSample, Fault::only_zeros(-1));
        const int64_t batches = (num_samples + kDraws - 1) / kDraws;
        torch::stable::parallel_for(0, batches, kBatches, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin * kDraws; i < std::min(end * kDraws, num_samples); i += kDraws) {
            int64_t count = std::min(kDraws, num_samples - i);
            draw_batch(shape, nodes, *seed, start + uint64_t(i), count, out + i);
          }
        });
      });
}

}  // namespace

STE_OPS_CPU_IMPL(m) {
  m.impl("sum_tree", TORCH_BOX(&sum_tree_cpu));
  m.impl("sum_tree_update_", TORCH_BOX(&sum_tree_update_cpu));
  m.impl("sum_tree_sample", TORCH_BOX(&sum_tree_sample_cpu));
}

}  // namespace ste_ops
