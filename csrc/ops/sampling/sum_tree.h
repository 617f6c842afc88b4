// What both backends of the sum tree do around their loops.
#pragma once

#include <tuple>

#include "core/sampling/sum_tree.h"
#include "ops/sampling/fault.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// What a pass over weights or over an update has found: 1, or -1 - i where entry i is the first that is wrong.
inline Tensor empty_verdict(const Tensor& like) { return empty_int64({}, like); }

inline void check_tree(const char* op, const Tensor& nodes, int64_t n) {
  STD_TORCH_CHECK(n > 0 && n <= kMaxCategories, op, ": a tree has between 1 and ", kMaxCategories, " weights, got ", n);
  STD_TORCH_CHECK(
      nodes.scalar_type() == ScalarType::Long && nodes.dim() == 1 && nodes.is_contiguous() &&
          nodes.numel() == TreeShape(n).numel,
      op, ": nodes must be those that sum_tree made for ", n, " weights, got ", nodes.numel());
}

// `build(Type<T>, like, weights, shape, nodes, verdict)` fills the last two; nodes come in as zeros.
template <class Build>
std::tuple<Tensor, Tensor> sum_tree(const Tensor& weights, Build&& build) {
  constexpr const char* op = "sum_tree";
  STD_TORCH_CHECK(weights.dim() == 1, op, ": weights must be 1-D, got ", weights.dim(), "-D");
  check_weights(op, weights);
  Tensor dense = row_major(weights);
  TreeShape shape(dense.numel());
  Tensor nodes = torch::stable::new_zeros(dense, {shape.numel}, ScalarType::Long);
  Tensor verdict = empty_verdict(dense);
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    build(
        type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), shape, mutable_unsigned_data(nodes),
        static_cast<int64_t*>(verdict.mutable_data_ptr()));
  });
  return {nodes, verdict};
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

// `update(Type<T>, like, shape, TreeUpdate)` writes nothing where an entry is wrong.
template <class Update>
void sum_tree_update(
    const Tensor& weights, const Tensor& nodes, const Tensor& indices, const Tensor& values, Update&& update) {
  constexpr const char* op = "sum_tree_update_";
  STD_TORCH_CHECK(weights.dim() == 1 && weights.is_contiguous(), op, ": weights must be 1-D and contiguous");
  check_tree(op, nodes, weights.numel());
  STD_TORCH_CHECK(indices.dim() == 1 && indices.scalar_type() == ScalarType::Long, op, ": indices must be 1-D int64");
  STD_TORCH_CHECK(
      values.dim() == 1 && values.numel() == indices.numel(), op, ": values must be 1-D, one for each of ",
      indices.numel(), " indices, got ", values.numel());
  STD_TORCH_CHECK(values.scalar_type() == weights.scalar_type(), op, ": values must have the dtype of weights");
  STD_TORCH_CHECK(
      nodes.device() == weights.device() && indices.device() == weights.device() && values.device() == weights.device(),
      op, ": all tensors must be on one device");
  Tensor index = row_major(indices), value = row_major(values);
  dispatch_floating(op, "weights", weights, [&](auto type) {
    using T = typename decltype(type)::type;
    TreeUpdate<bits_t<T>> changes{
        static_cast<bits_t<T>*>(weights.mutable_data_ptr()), mutable_unsigned_data(nodes),
        static_cast<const int64_t*>(index.const_data_ptr()), static_cast<const bits_t<T>*>(value.const_data_ptr()),
        index.numel()};
    update(type, weights, TreeShape(weights.numel()), changes);
  });
}

// `draw(shape, nodes, seed, start, num_samples, out)` fills out with draws start, start + 1, ...; -1 where the sum of
// all weights is zero.
template <class Draw>
Tensor sum_tree_sample(
    const Tensor& nodes, int64_t n, const Tensor& seed, int64_t start, int64_t num_samples, Draw&& draw) {
  constexpr const char* op = "sum_tree_sample";
  check_tree(op, nodes, n);
  check_one_seed(op, seed, nodes, "nodes");
  STD_TORCH_CHECK(start >= 0, op, ": start must be >= 0, got ", start);
  STD_TORCH_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  Tensor out = empty_int64({&num_samples, 1}, nodes);
  if (num_samples > 0) {
    draw(
        TreeShape(n), unsigned_data(nodes), unsigned_data(seed), uint64_t(start), num_samples,
        static_cast<int64_t*>(out.mutable_data_ptr()));
  }
  return out;
}

}  // namespace ste_ops
