// What both backends of the alias table do around their loops.
#pragma once

#include <tuple>

#include "core/sampling/alias.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

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
    build(
        type, dense, static_cast<const bits_t<T>*>(dense.const_data_ptr()), shape.rows, shape.n,
        mutable_unsigned_data(table), static_cast<int64_t*>(capacity.mutable_data_ptr()));
  });
  return {table, capacity};
}

// `draw(like, table, capacity, seed, rows, n, start, stride, num_samples, out)` fills out with draws start,
// start + stride, ... of each row.
template <class Draw>
Tensor alias_sample(
    const Tensor& table, const Tensor& capacity, const Tensor& seed, int64_t start, int64_t num_samples, int64_t stride,
    Draw&& draw) {
  constexpr const char* op = "alias_sample";
  STD_TORCH_CHECK(
      (table.dim() == 1 || table.dim() == 2) && table.scalar_type() == ScalarType::Long && table.is_contiguous(), op,
      ": table must be a contiguous int64 tensor, 1-D or 2-D, as alias_table makes it");
  Distributions shape(table);
  STD_TORCH_CHECK(
      capacity.scalar_type() == ScalarType::Long && capacity.is_contiguous() && capacity.numel() == shape.rows &&
          capacity.device() == table.device(),
      op, ": capacity must hold one int64 for each of ", shape.rows, " rows on table's device, got ", capacity.numel());
  check_one_seed(op, seed, table, "table");
  STD_TORCH_CHECK(start >= 0, op, ": start must be >= 0, got ", start);
  STD_TORCH_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  STD_TORCH_CHECK(stride >= 1, op, ": stride must be >= 1, got ", stride);
  STD_TORCH_CHECK(
      num_samples <= (INT64_MAX - start) / stride, op, ": the draws must have numbers below 2^63, got start ", start,
      ", num_samples ", num_samples, ", stride ", stride);
  int64_t sizes[2] = {shape.rows, num_samples};
  Tensor out = table.dim() == 2 ? empty_int64({sizes, 2}, table) : empty_int64({sizes + 1, 1}, table);
  if (out.numel() == 0) return out;
  STD_TORCH_CHECK(shape.n > 0, op, ": table must not be empty");
  draw(
      table, unsigned_data(table), static_cast<const int64_t*>(capacity.const_data_ptr()), unsigned_data(seed),
      shape.rows, shape.n, uint64_t(start), uint64_t(stride), num_samples,
      static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace ste_ops
