// The calls of the sum tree, checked and allocated for the backends.
#pragma once

#include "core/sampling/sum_tree.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// What a pass over weights or over an update has found: 1, or -1 - i where entry i is the first that is wrong.
inline Tensor empty_verdict(const Tensor& like) { return empty_int64({}, like); }

inline void check_tree(const char* op, const Tensor& nodes, int64_t n) {
  STE_CHECK(n > 0 && n <= kMaxCategories, op, ": a tree has between 1 and ", kMaxCategories, " weights, got ", n);
  STE_CHECK(
      nodes.scalar_type() == ScalarType::Long && nodes.dim() == 1 && nodes.is_contiguous() &&
          nodes.numel() == TreeShape(n).numel,
      op, ": nodes must be those that sum_tree made for ", n, " weights, got ", nodes.numel());
}

// A tree to build. `held` is to become a copy of the weights, which the tree is then of.
struct TreeBuild {
  static constexpr const char* op = "sum_tree";
  Weights weights;
  TreeShape shape;
  Tensor held, nodes, verdict;
};

inline TreeBuild prepare_tree_build(const Tensor& x) {
  constexpr const char* op = TreeBuild::op;
  STE_CHECK(x.dim() == 1, op, ": weights must be 1-D, got ", x.dim(), "-D");
  const Weights weights(op, x);
  const TreeShape shape(weights.n);
  return {
      weights, shape, empty_vector(weights.n, x.scalar_type(), x), empty_vector(shape.numel, ScalarType::Long, x),
      empty_verdict(x)};
}

// An update as the backends take it.
template <class B>
struct TreeUpdate {
  B* weights;
  uint64_t* nodes;
  const int64_t* index;
  const B* value;
  int64_t count;
};

// What is wrong with entry i of an update.
template <class T>
STE_HD Fault fault_of_update(const TreeUpdate<bits_t<T>>& update, int64_t i, int64_t n) {
  if (uint64_t(update.index[i]) >= uint64_t(n)) return Fault::out_of_range(i, update.index[i], n);
  return Fault::weight(-1, i, double(load(bit_cast<T>(update.value[i]))));
}

// What errors call these operators.
constexpr const char* kTreeUpdate = "SumTree.update";
constexpr const char* kTreeSample = "SumTree.sample";

// Values to write at the indices; nothing is written where an entry is wrong.
struct TreeUpdateCall {
  static constexpr const char* op = "sum_tree_update_";
  Tensor weights, nodes, index, value;
  TreeShape shape;

  template <class T>
  TreeUpdate<bits_t<T>> update() const {
    return {
        mutable_typed_data<bits_t<T>>(weights), mutable_unsigned_data(nodes), typed_data<int64_t>(index),
        typed_data<bits_t<T>>(value), index.numel()};
  }
};

inline TreeUpdateCall prepare_tree_update(
    const Tensor& weights, const Tensor& nodes, const Tensor& indices, const Tensor& values) {
  constexpr const char* op = TreeUpdateCall::op;
  STE_CHECK(weights.dim() == 1 && weights.is_contiguous(), op, ": weights must be 1-D and contiguous");
  check_tree(op, nodes, weights.numel());
  STE_CHECK(indices.dim() == 1 && indices.scalar_type() == ScalarType::Long, op, ": indices must be 1-D int64");
  STE_CHECK(
      values.dim() == 1 && values.numel() == indices.numel(), op, ": values must be 1-D, one for each of ",
      indices.numel(), " indices, got ", values.numel());
  STE_CHECK(values.scalar_type() == weights.scalar_type(), op, ": values must have the dtype of weights");
  STE_CHECK(
      nodes.device() == weights.device() && indices.device() == weights.device() && values.device() == weights.device(),
      op, ": all tensors must be on one device");
  return {weights, nodes, row_major(indices), row_major(values), TreeShape(weights.numel())};
}

// Draws start, start + 1, ...; -1 where the sum of all weights is zero.
struct TreeDraws {
  Tensor nodes, seed;
  TreeShape shape;
  uint64_t start;
  int64_t num_samples;
  Tensor out;
};

inline TreeDraws prepare_tree_draws(
    const Tensor& nodes, int64_t n, const Tensor& seed, int64_t start, int64_t num_samples) {
  constexpr const char* op = "sum_tree_sample";
  check_tree(op, nodes, n);
  check_one_seed(op, seed, nodes, "nodes");
  STE_CHECK(start >= 0, op, ": start must be >= 0, got ", start);
  STE_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  return {nodes, seed, TreeShape(n), uint64_t(start), num_samples, empty_int64({&num_samples, 1}, nodes)};
}

}  // namespace ste_ops
