// The calls of the alias table, checked and allocated for the backends.
#pragma once

#include "core/sampling/alias.h"
#include "ops/sampling/weights.h"

namespace ste_ops {

// Tables to build: one, with its capacity, for each row.
struct AliasTables {
  static constexpr const char* op = "alias_table";
  Weights weights;
  Tensor table, capacity;

  explicit AliasTables(const Tensor& x)
      : weights(op, x), table(empty_int64(x.sizes(), x)), capacity(empty_row_state(x)) {}
};

// Draws start, start + stride, ... from each row of a table.
struct AliasDraws {
  Tensor table, capacity, seed;
  int64_t rows, n;
  uint64_t start, stride;
  int64_t num_samples;
  Tensor out;
};

inline AliasDraws prepare_alias_draws(
    const Tensor& table, const Tensor& capacity, const Tensor& seed, int64_t start, int64_t num_samples,
    int64_t stride) {
  constexpr const char* op = "alias_sample";
  STE_CHECK(
      (table.dim() == 1 || table.dim() == 2) && table.scalar_type() == ScalarType::Long && table.is_contiguous(), op,
      ": table must be a contiguous int64 tensor, 1-D or 2-D, as alias_table makes it");
  Distributions shape(table);
  STE_CHECK(
      capacity.scalar_type() == ScalarType::Long && capacity.is_contiguous() && capacity.numel() == shape.rows &&
          capacity.device() == table.device(),
      op, ": capacity must hold one int64 for each of ", shape.rows, " rows on table's device, got ", capacity.numel());
  check_one_seed(op, seed, table, "table");
  STE_CHECK(start >= 0, op, ": start must be >= 0, got ", start);
  STE_CHECK(num_samples >= 0, op, ": num_samples must be >= 0, got ", num_samples);
  STE_CHECK(stride >= 1, op, ": stride must be >= 1, got ", stride);
  STE_CHECK(
      num_samples <= (INT64_MAX - start) / stride, op, ": the draws must have numbers below 2^63, got start ", start,
      ", num_samples ", num_samples, ", stride ", stride);
  Tensor out = empty_draws(table, num_samples);
  STE_CHECK(shape.n > 0 || out.numel() == 0, op, ": table must not be empty");
  return {table, capacity, seed, shape.rows, shape.n, uint64_t(start), uint64_t(stride), num_samples, out};
}

}  // namespace ste_ops
