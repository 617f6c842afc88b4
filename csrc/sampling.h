// What both backends of the sampling family do around their loops: checks and allocation.
#pragma once

#include <tuple>

#include "core/alias.h"
#include "core/bernoulli.h"
#include "core/exponential.h"
#include "dispatch.h"

namespace ste_ops {

// Weights of one distribution, or of one in each row.
struct Distributions {
  int64_t rows, n;
  explicit Distributions(const Tensor& weights)
      : rows(weights.dim() == 2 ? weights.size(0) : 1), n(weights.dim() == 0 ? 0 : weights.size(weights.dim() - 1)) {}
};

inline Tensor empty_int64(IntHeaderOnlyArrayRef sizes, const Tensor& like) {
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes[1] > 0 ? sizes[1] : 1;
  return empty_strided(sizes, {strides, sizes.size()}, ScalarType::Long, like);
}

inline const uint64_t* unsigned_data(const Tensor& x) { return static_cast<const uint64_t*>(x.const_data_ptr()); }
inline uint64_t* mutable_unsigned_data(const Tensor& x) { return static_cast<uint64_t*>(x.mutable_data_ptr()); }

inline void check_seed(const char* op, const Tensor& seed, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, op, ": seed must be int64, got ",
                  torch::headeronly::toString(seed.scalar_type()));
  STD_TORCH_CHECK(seed.device() == other.device(), op, ": seed and ", name, " must be on one device");
  STD_TORCH_CHECK(seed.is_contiguous(), op, ": seed must be contiguous");
}

// One seed for all of x, or one for each row of a contiguous x: how many rows are drawn apart.
inline int64_t seed_rows(const char* op, const Tensor& seed, const Tensor& x, const char* name) {
  check_seed(op, seed, x, name);
  const int64_t rows = seed.numel();
  STD_TORCH_CHECK(rows == 1 || (x.dim() > 0 && x.size(0) == rows && x.is_contiguous()), op,
                  ": seed must have one element, or one for each row of a contiguous ", name, ", got ", rows);
  return rows;
}

inline void check_weights(const char* op, const Tensor& weights) {
  STD_TORCH_CHECK(weights.dim() == 1 || weights.dim() == 2, op, ": weights must be 1-D or 2-D, got ", weights.dim(),
                  "-D");
  int64_t n = Distributions(weights).n;
  STD_TORCH_CHECK(n > 0, op, ": weights must not be empty");
  STD_TORCH_CHECK(n <= kMaxCategories, op, ": weights must have at most ", kMaxCategories, " categories, got ", n);
}

// One int64 for each row.
inline Tensor empty_row_state(const Tensor& weights) {
  return empty_int64({weights.sizes().data(), weights.dim() == 2 ? size_t(1) : size_t(0)}, weights);
}

// `build(Type<T>, like, weights, rows, n, deficit, excess, table, capacity)` fills the last two; weights are bits_t<T>,
// deficit and excess scratch.
template <class Build>
std::tuple<Tensor, Tensor> alias_table(const Tensor& weights, Build&& build) {
  constexpr const char* op = "alias_table";
  check_weights(op, weights);
  Distributions shape(weights);
  Tensor dense = row_major(weights);
  Tensor table = empty_int64(dense.sizes(), dense);
  Tensor capacity = empty_row_state(dense);
  if (weights.numel() == 0) return {table, capacity};
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    build(type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), shape.rows, shape.n,
          mutable_unsigned_data(table), static_cast<int64_t*>(capacity.mutable_data_ptr()));
  });
  return {table, capacity};
}

// `fill(Type<T>, like, weights, seed, rows, n, keys, positive)` fills the last two; weights are bits_t<T>.
template <class Fill>
std::tuple<Tensor, Tensor> exponential_keys(const Tensor& weights, const Tensor& seed, Fill&& fill) {
  constexpr const char* op = "exponential_keys";
  check_weights(op, weights);
  check_seed(op, seed, weights, "weights");
  STD_TORCH_CHECK(seed.numel() == 1, op, ": seed must have one element, got ", seed.numel());
  Distributions shape(weights);
  Tensor dense = row_major(weights);
  const int64_t strides[2] = {shape.n, 1};
  Tensor keys =
      empty_strided(dense.sizes(), {strides + 2 - dense.dim(), size_t(dense.dim())}, ScalarType::Double, dense);
  Tensor positive = empty_row_state(dense);
  if (weights.numel() == 0) return {keys, positive};
  dispatch_floating(op, "weights", dense, [&](auto type) {
    using T = typename decltype(type)::type;
    fill(type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), shape.rows, shape.n,
         static_cast<double*>(keys.mutable_data_ptr()), static_cast<int64_t*>(positive.mutable_data_ptr()));
  });
  return {keys, positive};
}

// `draw(like, table, capacity, seed, rows, n, start, num_samples, out)` fills out with draws start, start + 1, ... of
// each row.
template <class Draw>
Tensor alias_sample(const Tensor& table, const Tensor& capacity, const Tensor& seed, int64_t start, int64_t num_samples,
                    Draw&& draw) {
  constexpr const char* op = "alias_sample";
  STD_TORCH_CHECK(
      (table.dim() == 1 || table.dim() == 2) && table.scalar_type() == ScalarType::Long && table.is_contiguous(), op,
      ": table must be a contiguous int64 tensor, 1-D or 2-D, as alias_table makes it");
  Distributions shape(table);
  STD_TORCH_CHECK(capacity.scalar_type() == ScalarType::Long && capacity.is_contiguous() &&
                      capacity.numel() == shape.rows && capacity.device() == table.device(),
                  op, ": capacity must hold one int64 for each of ", shape.rows, " rows on table's device, got ",
                  capacity.numel());
  check_seed(op, seed, table, "table");
  STD_TORCH_CHECK(seed.numel() == 1, op, ": seed must have one element, got ", seed.numel());
  STD_TORCH_CHECK(start >= 0, op, ": start must be >= 0, got ", start);
  STD_TORCH_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  int64_t sizes[2] = {shape.rows, num_samples};
  Tensor out = table.dim() == 2 ? empty_int64({sizes, 2}, table) : empty_int64({sizes + 1, 1}, table);
  if (out.numel() == 0) return out;
  STD_TORCH_CHECK(shape.n > 0, op, ": table must not be empty");
  draw(table, unsigned_data(table), static_cast<const int64_t*>(capacity.const_data_ptr()), unsigned_data(seed),
       shape.rows, shape.n, uint64_t(start), num_samples, static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

// `draw(Type<T>, like, p, seed, rows, numel, out)` fills out, in p's memory order; each row of numel elements has a
// seed. Both are bits_t<T>.
template <class Draw>
Tensor bernoulli(const Tensor& p, const Tensor& seed, Draw&& draw) {
  constexpr const char* op = "bernoulli_ste";
  const int64_t rows = seed_rows(op, seed, p, "p");
  Tensor out = new_like(p);
  if (p.numel() == 0) return out;
  Tensor dense = in_layout_of(out, p);
  dispatch_floating(op, "p", p, [&](auto type) {
    using T = typename decltype(type)::type;
    draw(type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), unsigned_data(seed), rows,
         p.numel() / rows, static_cast<bits_t<T>*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace ste_ops
